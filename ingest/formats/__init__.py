"""Formats: from the bytes of a post to readings, as a block, and the errors of the others.

Imports the ground. receiver, dead_letters, admin, app and cli may import it.
"""
