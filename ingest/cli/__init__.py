"""The command line: `main` names the commands; each is a file here, or a folder.

`parser` and `context` are what several commands use. Imports anything. Nothing imports it but
`ingest.__main__`, and the commands of the annexes.
"""
