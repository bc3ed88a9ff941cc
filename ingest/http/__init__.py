"""HTTP: ports, connections, requests and answers.

The only folder that knows aiohttp. Imports the ground; receiver, admin, app and cli may import it.
"""
