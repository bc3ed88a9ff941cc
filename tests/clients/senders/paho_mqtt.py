"""`paho-mqtt`: each point is a message with QoS 1, as one item of our JSON.

The client keeps what the MQTT broker has not acknowledged, and sends it again after a reconnect.
"""

from __future__ import annotations

import json

from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion

from tests.clients.points import Point, row_of
from tests.clients.senders.common import batches, order, tell


def item(point: Point, measurement: str) -> str:
    """Return the message of a point: what it must become, as an item."""
    row = row_of(point, measurement)
    named = {"device_id": row.device, "metric": row.metric}
    return json.dumps({**named, "ts": row.ts_us, "value": point.value})


def main() -> None:
    """Publish all points; a point is kept when the broker has acknowledged its message."""
    ordered = order()
    host, port = ordered.host_and_port
    client = Client(CallbackAPIVersion.VERSION2, client_id="paho-mqtt", clean_session=False)
    client.connect(host, port)
    client.loop_start()
    points = ordered.read()
    sent = list[tuple[int, MQTTMessageInfo]]()
    for batch in batches(points, ordered.gates):
        for at in batch:
            message = item(points[at], ordered.measurement)
            sent.append((at, client.publish("sensors/a", message, qos=1)))
        for _, info in sent:
            info.wait_for_publish(60)
        tell(kept=[at for at, info in sent if info.is_published()])
        sent = [(at, info) for at, info in sent if not info.is_published()]
    client.disconnect()
    client.loop_stop()
    assert not sent, f"{len(sent)} messages are not acknowledged"


if __name__ == "__main__":
    main()
