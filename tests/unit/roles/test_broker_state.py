"""What a role says of the broker when its watch gets no answer."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from ingest.roles.broker_state import BrokerState
from ingest.system.clock import monotonic_s


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
