"""The posts of a fault itself, beside the traffic: on record too, and searched at the end.

Promises: each of these readings that a 2xx accepted must be in the table once.
Does not: read the dead letters; these readings are valid for the table, or not accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tests.faults.server import Server
from tests.system.service import Reply, Service

Item = Mapping[str, Any]
Row = tuple[int, str, str, float]  # ts in Unix microseconds, device_id, metric, value


class Own:
    """The posts of one fault. Items carry `ts`, in Unix microseconds."""

    def __init__(self) -> None:
        self.accepted: set[Row] = set()

    async def post(self, service: Service, items: Sequence[Item]) -> Reply:
        """Post items; the items that the answer accepts are on record."""
        reply = await service.post(list(items))
        if 200 <= reply.status < 300:
            bad = {each["index"] for each in reply.document["errors"]}
            self.accepted |= {_row(item) for at, item in enumerate(items) if at not in bad}
        return reply

    async def look(self, server: Server) -> tuple[set[Row], set[Row]]:
        """Return the accepted readings that are not in the table, and those there twice."""
        if not self.accepted:
            return set(), set()
        names = ", ".join(f"'{name}'" for name in sorted({row[1] for row in self.accepted}))
        found = await server.ask(
            "select (extract(epoch from ts) * 1000000)::bigint, device_id, metric, value "
            f"from readings where device_id in ({names})"
        )
        rows = Counter(tuple(each) for each in found)
        return (
            {row for row in self.accepted if not rows[row]},
            {row for row in self.accepted if rows[row] > 1},
        )


def _row(item: Item) -> Row:
    return int(item["ts"]), item["device_id"], item["metric"], float(item["value"])
