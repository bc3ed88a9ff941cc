"""`influxdb` (InfluxDB 1): write_points, with the token as the password of Basic.

It tries again only after a lost connection.
"""

from __future__ import annotations

from influxdb import InfluxDBClient

from tests.clients.points import Point
from tests.clients.senders.common import order, write_each


def main() -> None:
    """Write what was ordered."""
    ordered = order()
    host, port = ordered.host_and_port
    client = InfluxDBClient(
        host, port, username="any", password=ordered.token, database="home", timeout=10
    )

    def write(points: list[Point]) -> None:
        client.write_points(
            [
                {
                    "measurement": ordered.measurement,
                    "tags": {"device": point.device, "place": point.place},
                    "time": point.ts_us,
                    "fields": {point.field: point.value},
                }
                for point in points
            ],
            time_precision="u",
        )

    write_each(ordered, write)


if __name__ == "__main__":
    main()
