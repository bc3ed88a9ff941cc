"""The command line: `main` reads the arguments, and each command has a file of its own.

Imports anything. Nothing imports it but `ingest.__main__`.
"""
