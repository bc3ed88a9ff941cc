"""The writer: it writes batches from a buffer into a sink, and handles writes that fail.

Imports model, system and config. app and cli may import it.
"""
