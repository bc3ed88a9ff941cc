"""The composition roots: what makes the parts, connects them, and starts and stops them in order.

Imports anything but cli. Only cli and the annexes import it.
"""
