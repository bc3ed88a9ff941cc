"""Embedded: PostgreSQL's programs, its data folder, and its process.

Imports the ground. app and cli may import it.
"""
