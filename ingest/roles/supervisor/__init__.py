"""The buffer on a stream of the broker: its inlet is in a gateway, its outlet in a writer.

A message of the stream is one frame (`frames.py`).
"""
