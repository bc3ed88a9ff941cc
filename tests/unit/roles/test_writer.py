"""What a writer process says of the stream, between two looks at it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ingest.roles.nats.stream_state import Undone, state_of
from ingest.roles.nats.streams import Found
from ingest.roles.writer import StreamWriter


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
