"""Ground: the clock, logs, files and signals of the machine that we run on.

The only folder that knows fcntl and time. Imports model; everybody may import it.
"""
