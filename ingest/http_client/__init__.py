"""HTTP client: posts to the servers of others.

Of aiohttp, this folder imports the client.
"""
