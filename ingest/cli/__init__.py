"""The command line: main.py reads the arguments, and each command has a file of its own.

It may import everything. Only `ingest.__main__` imports it.
"""
