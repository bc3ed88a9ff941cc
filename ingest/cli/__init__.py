"""The command line: `main`, the services that run on, and one file for each other command.

Imports anything. Nothing imports it but `ingest.__main__`.
"""
