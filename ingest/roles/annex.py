"""What this annex adds to the lists of the main house."""

from __future__ import annotations

from ingest.app import broker_state
from ingest.app.annexes import Annex
from ingest.broker import audit, purge
from ingest.buffers.stream import outlet

ANNEX = Annex(
    causes=broker_state.CAUSES,
    metrics=(
        *broker_state.METRICS,
        *broker_state.OF_STREAM,
        *audit.METRICS,
        *purge.METRICS,
        *outlet.METRICS,
    ),
)
