"""The journal: a buffer whose blocks are on the disk too, and outlive the process.

A part of buffers/, whose __init__.py says who may import it.
"""
