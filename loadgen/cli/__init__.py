"""The command line: `main`, and for each command a file, its options, and its progress.

May import all of loadgen. Only `python -m loadgen` imports it.
"""
