"""Ways in which a sink writes, for tests that go through all of them."""

from __future__ import annotations

import pytest

from ingest.app.database import make_sink
from ingest.config.settings import Settings
from ingest.model.block import Refusal
from ingest.model.causes import WriteFailed
from ingest.model.ports import Stored
from ingest.model.reading import Reading
from ingest.sinks.postgres.checked_connection import KnownServer
from ingest.sinks.postgres.sink import SinkPostgres
from tests.support.rows import encode

WAYS = ["copy", "staged", "isolating", "insert"]


def sink_for(way: str, url: str, known: KnownServer | None = None) -> SinkPostgres:
    """Give a sink that checks the table when it connects, and then never again by itself."""
    method = "insert" if way == "insert" else "copy"
    settings = Settings(write_method=method, schema_check_s=3_600.0, database_unsafe=True)
    return make_sink(url, settings, known=known)


async def write(sink: SinkPostgres, way: str, rows: list[Reading]) -> Stored:
    """Write rows in one of the ways of a sink."""

    async def set_aside(bad: list[Refusal]) -> None:
        raise AssertionError(f"no row is at fault: {bad}")

    if way == "isolating":
        return await sink.write_isolating(encode(rows), len(rows), set_aside)
    return await sink.write(encode(rows), len(rows), idempotent=way == "staged")


async def open_failure(sink: SinkPostgres) -> WriteFailed:
    """Open a sink that must fail, and return how."""
    with pytest.raises(WriteFailed) as failed:
        await sink.open()
    assert not sink.is_open
    return failed.value
