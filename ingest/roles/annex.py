"""What this annex adds to the lists of the main house."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from ingest.app.annexes import Annex
from ingest.roles import broker_state, outlet
from ingest.roles.nats import audit, purge

if TYPE_CHECKING:
    from ingest.cli.doctor.checks import Check
    from ingest.config.settings import Settings
    from ingest.dead_letters.store import LetterStore


def _letters(
    settings: Settings, asked_for: str | None, files: LetterStore
) -> AbstractAsyncContextManager[LetterStore]:
    from ingest.roles.commands.broker import letters_of_broker  # noqa: PLC0415

    return letters_of_broker(settings, asked_for, files)


async def _checks(settings: Settings) -> list[Check]:
    from ingest.roles.commands.broker import broker_checks  # noqa: PLC0415

    return await broker_checks(settings)


ANNEX = Annex(
    causes=broker_state.CAUSES,
    metrics=(
        *broker_state.METRICS,
        *broker_state.OF_STREAM,
        *audit.METRICS,
        *purge.METRICS,
        *outlet.METRICS,
    ),
    checks=_checks,
    letters=_letters,
)
