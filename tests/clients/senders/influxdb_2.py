"""`influxdb-client` (InfluxDB 2): batching as its documentation shows it, or `synchronous`.

The token is sent as `Token`.
"""

from __future__ import annotations

import sys
from functools import partial

from influxdb_client import InfluxDBClient, WriteOptions, WritePrecision
from influxdb_client import Point as ClientPoint
from influxdb_client.client.write_api import SYNCHRONOUS

from tests.clients.points import Point
from tests.clients.senders.common import Order, Told, order, write_each, write_in_background

BATCHING = WriteOptions(batch_size=500, flush_interval=1_000, jitter_interval=100)


def records(measurement: str, points: list[Point]) -> list[ClientPoint]:
    """Return the points as the client has them."""
    return [
        ClientPoint(measurement)
        .tag("device", point.device)
        .tag("place", point.place)
        .field(point.field, point.value)
        .time(point.ts_us, WritePrecision.US)
        for point in points
    ]


def in_background(client: InfluxDBClient, ordered: Order) -> None:
    """Write with batches and tries of the client's own."""
    points = ordered.read()
    told = Told(points, us=1)
    with client.write_api(
        write_options=BATCHING,
        success_callback=lambda _where, data: told.kept(data),
        error_callback=lambda _where, data, error: told.failed(data, error),
    ) as api:
        write = partial(api.write, "home", "org")
        write_in_background(
            ordered, told, points, lambda some: write(records(ordered.measurement, some), "us")
        )


def main() -> None:
    """Write what was ordered."""
    ordered = order()
    with InfluxDBClient(url=ordered.url, token=ordered.token, org="org") as client:
        if "synchronous" not in sys.argv:
            in_background(client, ordered)
            return
        api = client.write_api(write_options=SYNCHRONOUS)
        write_each(
            ordered,
            lambda some: api.write("home", "org", records(ordered.measurement, some), "us"),
        )


if __name__ == "__main__":
    main()
