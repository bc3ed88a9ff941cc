"""Buffers: what was accepted is held here until it is in the table.

Each keeps the contract `Buffer` of model/ports.
"""
