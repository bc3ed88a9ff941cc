"""Embedded: PostgreSQL's programs, its data folder, and its process.

Imports model, system and config. app and cli may import it.
"""
