"""HTTP: ports, connections, requests and answers.

Of aiohttp, this folder imports the parser of requests. Imports the ground only. receiver, admin,
app and cli may import it.
"""
