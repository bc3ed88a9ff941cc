"""The receiver: answers a post, with the help of formats, dead letters and the buffer.

Imports http, formats and the ground. admin, app and cli may import it.
"""
