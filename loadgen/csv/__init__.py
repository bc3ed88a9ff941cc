"""Posts a CSV: the file as batches of readings, and a client that tries again until an answer.

May import `wire` and `words` only. Only `cli` imports it.
"""
