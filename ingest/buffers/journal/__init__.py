"""The journal: a buffer on the disk, which outlives the process.

Part of buffers; see there who may import it.
"""
