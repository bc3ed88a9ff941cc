"""Gives the product other constants, for a test that would wait too long or write too much.

Tests name them as settings are named: `Service(folder, put_wait_s_max=0.2)`. In a test's process
`constants` sets them for a while; `python -m tests.support.constants serve ..` is `ingest serve ..`
with those of TEST_CONSTANTS, a JSON object.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

PROGRAM = ("-m", __name__ if __name__ != "__main__" else "tests.support.constants")
VARIABLE = "TEST_CONSTANTS"
PLACES: dict[str, tuple[str, ...]] = {  # where each one is read
    "answer_s_max": ("ingest.app.receiving.ANSWER_S_MAX",),
    "breaker_rows_max": ("ingest.app.writing.ROWS_MAX",),
    "breaker_window_rows": ("ingest.app.writing.WINDOW_ROWS",),
    "dlq_invalid_parts": ("ingest.dead_letters.queue.INVALID_PARTS",),
    "dlq_replay_pause_s": ("ingest.app.writing.REPLAY_PAUSE_S",),
    "dlq_segment_bytes": ("ingest.dead_letters.folder.backend.SEGMENT_BYTES",),
    "full_s_min": ("ingest.app.space.FULL_S_MIN",),
    "hold_probe_s_max": ("ingest.config.settings.HOLD_PROBE_S_MAX",),
    "housekeeping_pause_s": ("ingest.app.housekeeping.PAUSE_S",),
    "journal_segment_bytes": ("ingest.app.buffer.SEGMENT_BYTES",),
    "late_days_max": ("ingest.app.database.LATE_DAYS_MAX",),
    "line_bytes_max": ("ingest.app.receiving.LINE_BYTES_MAX",),
    "line_rows_max": ("ingest.app.receiving.LINE_ROWS_MAX",),
    "partitions_ahead": ("ingest.app.database.PARTITIONS_AHEAD",),
    "put_wait_s_max": (
        "ingest.app.buffer.PUT_WAIT_S_MAX",
        "ingest.roles.gateway.PUT_WAIT_S_MAX",
        "ingest.roles.writer.PUT_WAIT_S_MAX",
    ),
    "sender_burst_s": ("ingest.app.receiving.SENDER_BURST_S",),
}


def split(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings and the constants among these values."""
    settings = {name: value for name, value in given.items() if name not in PLACES}
    return settings, {name: value for name, value in given.items() if name in PLACES}


@contextmanager
def constants(**values: Any) -> Iterator[None]:
    """Set these constants for a while. An object that was made meanwhile keeps what it read."""
    with ExitStack() as stack:
        for name, value in values.items():
            for place in PLACES[name]:
                module, _, constant = place.rpartition(".")
                stack.enter_context(patch.object(importlib.import_module(module), constant, value))
        yield


def variables(values: Mapping[str, Any]) -> dict[str, str]:
    """Return what PROGRAM needs in its environment to set these constants."""
    return {VARIABLE: json.dumps(values)} if values else {}


@contextmanager
def wanted() -> Iterator[None]:
    """Set the constants that the environment has, in a process that a test has started."""
    with constants(**json.loads(os.environ.get(VARIABLE, "{}"))):
        yield


if __name__ == "__main__":
    from ingest.cli.commands import main

    with wanted():
        sys.exit(main())
