"""Posts a CSV: the file as batches of readings, and a client that never gives a post up.

May import `words` only. Only `cli` imports it.
"""
