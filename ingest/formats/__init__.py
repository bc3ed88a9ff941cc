"""Formats: from the bytes of a post to a block of its valid readings, and errors for the others.

Imports the ground only. receiver, dead_letters, admin, app and cli may import it.
"""
