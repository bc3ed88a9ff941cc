"""The embedded PostgreSQL: its programs, its data, its process.

Imports model, system and config. app and cli may import it.
"""
