"""The receiver: from a request to an answer, by way of formats, dead letters and buffer.

Imports http and formats and the ground. admin, app and cli may import it.
"""
