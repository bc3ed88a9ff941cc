"""The embedded PostgreSQL: the programs, the data and the process of that server.

Imports the ground. app and cli may import it.
"""
