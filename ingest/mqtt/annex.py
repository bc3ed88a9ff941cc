"""What this annex adds to the lists of the main house."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest.app.annexes import Annex

if TYPE_CHECKING:
    from ingest.cli.doctor.checks import Check
    from ingest.config.settings import Settings


async def _checks(settings: Settings) -> list[Check]:
    from ingest.mqtt.command import mqtt_checks  # noqa: PLC0415

    return list(mqtt_checks(settings))


ANNEX = Annex(checks=_checks)
