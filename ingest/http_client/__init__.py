"""HTTP client: posts to the servers of others.

Of aiohttp, this folder imports the client. Imports model and system. forward, app and cli may
import it.
"""
