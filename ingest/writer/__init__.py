"""The writer: batches from a buffer into a sink, and what to do when a write fails.

Imports the ground. app and cli may import it.
"""
