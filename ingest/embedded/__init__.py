"""The embedded PostgreSQL: its programs, data and process.

Imports model, system and config. app and cli may import it.
"""
