"""What this annex adds to the lists of the main house: what `ingest doctor` finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest.app.annexes import Annex
from ingest.config.named_files import state_dir
from ingest.system.files import size_bytes
from ingest.system.state_folder import StateFolder

if TYPE_CHECKING:
    from ingest.cli.doctor.checks import Check
    from ingest.config.settings import Settings

NOT_OURS = (
    "what the MQTT broker drops never comes here, and cannot be seen from here: check its "
    "max_queued_messages, persistence and autosave_interval, and that devices publish with QoS 1"
)


async def _checks(settings: Settings) -> list[Check]:
    """Return what is found about each `ingest mqtt` that has run with this state folder."""
    from ingest.cli.doctor.checks import OK, WARN, Check  # noqa: PLC0415
    from ingest.dead_letters.folder.segments import segments  # noqa: PLC0415

    root = state_dir(settings) / "mqtt"
    try:
        names = sorted(each.name for each in root.iterdir() if each.is_dir())
    except OSError:
        return []
    found = []
    for name in names:
        kept = sum(map(size_bytes, segments(StateFolder(root / name).dead_letters)))
        said = (
            f"`ingest dlq list --mqtt {name}` shows what the service has refused; " if kept else ""
        )
        found.append(Check(f"mqtt {name}", WARN if kept else OK, said + NOT_OURS))
    return found


ANNEX = Annex(checks=_checks)
