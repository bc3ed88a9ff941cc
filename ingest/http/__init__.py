"""HTTP: ports, connections, requests and answers.

The only folder that imports aiohttp. Imports the ground only. receiver, admin, app and cli may
import it.
"""
