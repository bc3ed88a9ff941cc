"""HTTP: ports, connections, requests and answers.

Of aiohttp, this folder imports the parser of requests.
"""
