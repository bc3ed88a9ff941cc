"""The nats-servers of a BrokerWorld: their configuration, their streams, and who leads."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import FORWARD, STREAM
from ingest.roles.nats.streams import (
    WantedStream,
    changed,
    for_tables,
    wanted_letters,
    wanted_readings,
)
from ingest.roles.nats.watch import ask
from tests.support.brokers import Cluster, Member, api, joined


class FaultyServers(Cluster):
    """One server or three. `settings` are those of the roles; `words` replace words of a config."""

    def __init__(
        self, members: list[Member], settings: Mapping[str, object], words: Mapping[str, str]
    ) -> None:
        super().__init__(members)
        self._settings = settings
        for each in members:
            text = each.config.read_text()
            for old, new in words.items():
                assert old in text, f"{old} is not in the configuration"
                text = text.replace(old, new)
            each.config.write_text(text)

    @property
    def wanted(self) -> tuple[WantedStream, WantedStream]:
        """What the streams must be."""
        copies = len(self.members)
        size, letters = (int(str(self._settings[f"{of}_bytes_max"])) for of in ("stream", "dlq"))
        forwards = tuple(FORWARD + each for each in str(self._settings.get("forwards", "")).split())
        readings = wanted_readings(copies, size, forwards)
        if "tables_file" in self._settings:
            readings = for_tables(readings)
        return readings, wanted_letters(copies, letters)

    def admin(self) -> contextlib.AbstractAsyncContextManager[BrokerConnection]:
        """Give a connection of the admin."""
        return joined(lambda: self.address("admin"), "admin")

    async def leads(self) -> Member:
        """Return the server that leads the stream, once all copies are current."""
        async with self.admin() as admin:
            return await self.leader(admin)

    def that_serve(self, role: str) -> list[Member]:
        """Return the servers that a role is connected to. Blocks."""
        found = []
        for each in self.members:
            lines = ask(each.monitor_url, "/connz?auth=1").get("connections") or ()
            if any(line.get("authorized_user") == role for line in lines):
                found.append(each)
        return found

    async def remake_stream(self, settings: Mapping[str, object]) -> None:
        """Make the empty stream anew with some other settings: not all can be changed."""
        stream, _ = self.wanted
        async with self.admin() as admin:
            assert "error" not in await api(admin, f"STREAM.DELETE.{STREAM}")
            config = changed({**stream.stream, **settings}, {})
            made = await api(admin, f"STREAM.CREATE.{STREAM}", config)
            assert "error" not in made, made
        await self.make_consumers()

    async def make_consumers(self) -> None:
        """Make the consumers of the stream."""
        stream, _ = self.wanted
        async with self.admin() as admin:
            for name, each in stream.consumers.items():
                body = {"stream_name": STREAM, "config": changed(each, {}), "action": "create"}
                made = await api(admin, f"CONSUMER.CREATE.{STREAM}.{name}", body)
                assert "error" not in made, made
