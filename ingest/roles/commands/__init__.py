"""The dead letters as messages of a stream of the broker, for gateways and writers.

A part of dead_letters/, whose __init__.py says who may import it. It imports the broker too.
"""
