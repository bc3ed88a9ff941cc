"""Embedded: PostgreSQL and nats-server: their programs, their data, and their processes.

Imports model, system, config and broker. app and cli may import it.
"""
