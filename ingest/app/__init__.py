"""The composition roots: they make the parts, connect them, and start and stop them in order.

Imports anything but cli. Only cli imports it.
"""
