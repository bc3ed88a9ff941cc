"""Broker: the connection to NATS JetStream, its streams, publishing and pulling.

Imports model and system. The folders above may import it.
"""
