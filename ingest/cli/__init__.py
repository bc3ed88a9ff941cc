"""The command line: `main`, and one file for each command.

Imports anything. Nothing imports it but `ingest.__main__`.
"""
