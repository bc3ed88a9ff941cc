"""A role that runs alone, and what its watch and its audit take for granted."""

from __future__ import annotations

import asyncio
import math
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from ingest.app.metrics_and_causes import own_metrics
from ingest.config.settings import Settings
from ingest.model.errors import DeadLettersFull, StartError
from ingest.roles import writer
from ingest.roles.broker_state import BrokerState
from ingest.roles.commands.services import UNUSED_BY_GATEWAY, UNUSED_BY_WRITER
from ingest.roles.gateway import Gateway
from ingest.roles.nats.protocol import Address
from ingest.roles.nats.pulling import Delivery
from ingest.roles.nats.stream_state import Undone, state_of
from ingest.roles.nats.streams import Found
from ingest.roles.role import Place, alone
from ingest.roles.writer import StreamWriter
from ingest.system.clock import monotonic_s

BROKER = Address(("nats://127.0.0.1:1",), "", "")
# Parts that several roles share look at these, and come to nothing by them.
SHARED = {"buffer", "journal_bytes_max", "database_url", "database_url_file"}


class Read:
    """Settings that note which of them are read."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._settings = Settings(database_url="postgresql://127.0.0.1:1/none")

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self._settings, name)


def compose(made: type[Gateway] | type[StreamWriter], settings: Any) -> Gateway | StreamWriter:
    """Return a role that does not run."""
    place = Place(settings, "one", BROKER, (), settings.database_url)
    return made(place, lambda _line: None)


@pytest.mark.parametrize(
    ("made", "unused", "read"),
    [
        (Gateway, UNUSED_BY_GATEWAY, ("listen", "body_bytes_max")),
        (StreamWriter, UNUSED_BY_WRITER, ("database_url", "writers", "stream_keep_s")),
    ],
)
async def test_help_of_a_role_hides_no_setting_that_it_reads(
    made: type[Gateway] | type[StreamWriter], unused: tuple[str, ...], read: tuple[str, ...]
) -> None:
    """What is hidden is a name of a setting, and is needed by nobody here."""
    hidden = set(unused)
    assert hidden <= {each.name for each in fields(Settings)}
    settings = Read()
    compose(made, settings)
    assert hidden & settings.names <= SHARED
    assert set(read) - {"listen", "database_url"} <= settings.names
    assert not hidden & set(read)


@pytest.mark.parametrize("role_name", ["gateway", "writer"])
def test_role_alone_says_what_it_misses(role_name: str) -> None:
    """A role that runs alone needs a broker."""
    settings = Settings(
        broker_url="nats://127.0.0.1:1", database_url="postgresql://127.0.0.1:1/none"
    )
    assert alone(settings, role_name).broker.servers == BROKER.servers
    with pytest.raises(StartError, match="broker_url"):
        alone(Settings(), role_name)


async def test_page_of_a_writer_says_that_its_button_is_for_this_one_alone() -> None:
    """It shows all of them, but reaches no other."""
    alone_one = compose(StreamWriter, Settings(database_url="postgresql://127.0.0.1:1/none"))
    assert isinstance(alone_one, StreamWriter)
    assert alone_one._admin is not None
    assert alone_one._admin.dashboard._settings["releases"] == "one"


@pytest.mark.parametrize("made", [Gateway, StreamWriter])
async def test_role_without_a_folder_has_no_disk_that_fills(
    made: type[Gateway] | type[StreamWriter],
) -> None:
    """A free space of 0 would be below its bound, and an alert would say so for ever."""
    made_one = compose(made, Settings(database_url="postgresql://127.0.0.1:1/none"))
    made_one.health.started()
    made_one.health.tick()
    assert made_one.health.refusal() is None
    assert b"ingest_disk_free_bytes" not in own_metrics(made_one.ledger).text()


@pytest.mark.parametrize("many", [True, False])
async def test_foreign_message_that_was_read_again_and_cannot_be_set_aside_is_read_once_more(
    monkeypatch: pytest.MonkeyPatch, *, many: bool
) -> None:
    """Nobody delivers it a second time. If the audit waited for it, nothing would be purged."""
    made = compose(StreamWriter, Settings(database_url="postgresql://127.0.0.1:1/none"))
    assert isinstance(made, StreamWriter)

    async def full(_: object) -> None:
        raise DeadLettersFull("no room")

    monkeypatch.setattr(made.dead_letters, "append", full)
    if many:
        monkeypatch.setattr(writer, "FOREIGN_MAX", 0)
    made._audit._open, made._audit._in_hand = {7: set()}, {7}
    made.outlet.deliver(Delivery(b"no block", 7, 2, ""))
    await asyncio.gather(*made._foreign)
    assert made._audit._in_hand == set()
    assert set(made._audit._open) == {7}, "it is not done"


@pytest.mark.parametrize(
    ("away_for_s", "acknowledged_before_s", "cause"),
    [
        (None, math.inf, ""),
        (1.0, math.inf, ""),
        (30.0, math.inf, "broker_away"),
        (30.0, 40.0, "broker_away"),
        (30.0, 0.5, ""),  # the leaders have changed: a question was lost, and messages are taken
        (30.0, 5.0, "broker_away"),
    ],
)
def test_broker_that_takes_messages_is_not_away(
    away_for_s: float | None, acknowledged_before_s: float, cause: str
) -> None:
    """An acknowledged message is as good as an answer to the watch."""
    now_s = monotonic_s()
    since_s = None if away_for_s is None else now_s - away_for_s
    watch = SimpleNamespace(disk_failed="", away_since_s=since_s, faults=())
    state = BrokerState(watch, acknowledged_s=lambda: now_s - acknowledged_before_s)  # type: ignore[arg-type]
    assert state.trouble().cause == cause
    assert (state.away_s >= 2) == bool(cause)


def test_age_of_what_is_not_done_is_that_of_the_last_look() -> None:
    """It is done meanwhile, or not: only the next look tells. A post must not be refused for it."""
    numbers = {"first_seq": 1, "last_seq": 9, "messages": 9, "bytes": 90}
    state = state_of(Found({"config": {}, "state": numbers}, {"num_pending": 1}))
    watch = SimpleNamespace(state=state, looked_s=100.0)
    writer: Any = StreamWriter.__new__(StreamWriter)
    writer.watch, writer._undone = watch, Undone()
    ages_s = [writer._waiting()[-1] for _ in range(2)]
    watch.looked_s = 101.0
    assert [*ages_s, writer._waiting()[-1]] == [0.0, 0.0, 1.0]
