"""The command line: `main`, and one file a command.

Imports anything. Nothing imports it but `ingest.__main__`.
"""
