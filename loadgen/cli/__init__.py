"""The command line: `main`, and for each command a file, its options, and what it shows.

May import all of loadgen. Nobody imports it but `python -m loadgen`.
"""
