"""MQTT, an annex: takes the messages of a broker, posts them to the service, acknowledges them.

The only folder that imports MQTT's library, paho, which is an optional extra.
"""
