"""Messages of an MQTT broker, posted to the service, and acknowledged after its answer.

Of MQTT's library, this folder alone imports it. Imports http_client, model and system. app and
admin may import it.
"""
