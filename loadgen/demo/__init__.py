"""`./run demo` (`python -m loadgen.demo`): the service, and a simulated fleet that posts to it.

May import `measure`, `proof` and what is below them. No other folder imports it.
"""
