"""The dead-letter queue: what could not be written, kept until somebody acts.

Imports formats, the broker and the ground. admin, app and cli may import it.
"""
