"""Forward: posts the readings of the stream to a webhook.

Imports the ground, http_client, broker and buffers. app and cli may import it.
"""
