"""Connections that are being opened when the service stops."""

from __future__ import annotations

from collections.abc import Sequence

from ingest.model.ports import Outlet, Sink


def stop_connecting(outlet: Outlet, sinks: Sequence[Sink]) -> None:
    """If nothing is to be written, cut connections that are being opened. Open ones stay."""
    if outlet.rows_waiting == 0 and outlet.stats().rows_taken == 0:
        for sink in sinks:
            if not sink.is_open:
                sink.abort()
