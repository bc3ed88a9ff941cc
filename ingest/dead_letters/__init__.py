"""The dead-letter queue: what could not be written, kept in files until somebody acts.

Imports formats and the ground. admin, app and cli may import it.
"""
