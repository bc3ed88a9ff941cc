"""Posts before the first check of the table: the log and /readyz say why they are only kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import structlog

from ingest.app.health import FirstContact
from ingest.model.causes import Verdict, WriteFailed
from ingest.sinks.postgres.sqlstate import reason_for
from ingest.system.state_folder import StateFolder
from ingest.writer.database_state import DatabaseState
from tests.support.health import make_health


@pytest.mark.parametrize(
    ("code", "message", "reason"),
    [
        (None, "h:1: no answer in time", "no connection to the database since the start"),
        ("57P03", "the database system is starting up", "no connection to the database since"),
        ("53300", "sorry, too many clients already", "the database has no free connection"),
    ],
)
def test_database_that_answers_is_not_said_to_be_silent(
    code: str | None,
    message: str,
    reason: str,
    tmp_path: Path,
) -> None:
    """An operator would look for a fault of the network."""
    state = DatabaseState(wait_s_min=1, wait_s_max=1, hold_probe_s=1)
    health = make_health(database_state=state)
    contact = FirstContact(health, StateFolder.open(tmp_path), may_take=True)
    contact.begin("postgresql://u@h/x")
    state.failed(WriteFailed(Verdict.WAIT, message, sqlstate=code, reason=reason_for(code)))
    with structlog.testing.capture_logs() as lines:
        contact.away(message)
    (warning,) = [line for line in lines if line["event"] == "database_never_seen"]
    assert warning["why"].startswith(message)
    assert json.loads(health.readyz()[1])["reason"].startswith(reason)
