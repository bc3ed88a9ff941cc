"""Ground: the clock, logs, files and signals of the machine.

The only folder that imports fcntl and time. It imports model. Every other folder may import it.
"""
