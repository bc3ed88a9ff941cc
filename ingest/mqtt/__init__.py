"""MQTT: takes the messages of a broker, posts them to the service, and acknowledges them after it.

The only folder that imports MQTT's library, paho, which is an optional extra.
"""
