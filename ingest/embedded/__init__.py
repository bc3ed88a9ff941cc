"""The embedded PostgreSQL: its programs, data and process.

Imports the ground. app and cli may import it.
"""
