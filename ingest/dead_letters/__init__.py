"""The dead-letter queue: keeps in files what could not be written, until it is replayed.

It imports formats and the ground. admin, app and cli may import it.
"""
