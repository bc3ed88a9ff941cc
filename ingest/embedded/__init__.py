"""The embedded PostgreSQL: its programs, its data, its process.

Imports the ground. app and cli may import it.
"""
