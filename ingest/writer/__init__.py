"""The writer: it writes batches from a buffer into a sink, and handles writes that fail."""
