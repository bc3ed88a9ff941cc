"""Buffers: they hold what was accepted until it is in the table.

Each keeps the contract `Buffer` of model/ports. Imports the ground; app and cli may import it.
"""
