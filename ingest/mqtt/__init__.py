"""MQTT, an annex: posts the messages of a broker to the service, then acknowledges them."""
