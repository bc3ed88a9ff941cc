"""`influxdb3-python` (InfluxDB 3): batching at /api/v2/write, or `synchronous` at /api/v3/write_lp.

The first sends the token as `Token`, the second one as `Bearer`.
"""

from __future__ import annotations

import sys
from typing import Any

from influxdb_client_3 import (
    SYNCHRONOUS,
    InfluxDBClient3,
    WriteOptions,
    write_client_options,
)
from influxdb_client_3 import Point as ClientPoint

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
        .time(point.ts_us, "us")
        for point in points
    ]


def make_client(ordered: Order, **options: Any) -> InfluxDBClient3:
    """Return a client."""
    return InfluxDBClient3(
        host=ordered.url, token=ordered.token, database="home", org="org", **options
    )


def in_background(ordered: Order) -> None:
    """Write with batches and tries of the client's own."""
    points = ordered.read()
    told = Told(points, us=1)
    options = write_client_options(
        write_options=BATCHING,
        success_callback=lambda _where, data: told.kept(data),
        error_callback=lambda _where, data, error: told.failed(data, error),
    )
    with make_client(ordered, write_client_options=options) as client:
        write_in_background(
            ordered,
            told,
            points,
            lambda some: client.write(records(ordered.measurement, some), write_precision="us"),
        )


def one_by_one(ordered: Order) -> None:
    """Write batch after batch, and wait for each."""
    options = write_client_options(write_options=SYNCHRONOUS)
    with make_client(
        ordered, auth_scheme="Bearer", write_client_options=options, write_use_v2_api=False
    ) as client:
        write_each(
            ordered,
            lambda some: client.write(records(ordered.measurement, some), write_precision="us"),
        )


if __name__ == "__main__":
    (one_by_one if "synchronous" in sys.argv else in_background)(order())
