"""System: the clock, logs, files and signals of the machine that we run on.

The only folder that reads the clock.
"""
