"""MQTT: takes the messages of a broker, posts them to the service, and acknowledges them after it.

Of MQTT's library, this folder alone imports it. Imports http_client, model and system. app and
admin may import it.
"""
