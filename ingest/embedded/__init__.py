"""Embedded: a PostgreSQL of our own, its programs, its data and its process.

`server_process` is for any server program. The annex roles has a nats-server with it.
"""
