"""What `ingest doctor` says about MQTT: what no part of ours can promise."""

from __future__ import annotations

from collections.abc import Iterator

from ingest.cli.doctor_database import OK, WARN, Check
from ingest.config.folders import state_dir
from ingest.config.settings import Settings
from ingest.dead_letters.folder.segments import segments
from ingest.system.files import size_bytes
from ingest.system.state_folder import StateFolder

NOT_OURS = (
    "what the MQTT broker drops never comes here, and cannot be seen from here: check its "
    "max_queued_messages, persistence and autosave_interval, and that devices publish with QoS 1 "
    "(docs/mqtt.md)"
)


def mqtt_checks(settings: Settings) -> Iterator[Check]:
    """Yield a finding for each `ingest mqtt` that has run with this state folder."""
    root = state_dir(settings) / "mqtt"
    try:
        names = sorted(each.name for each in root.iterdir() if each.is_dir())
    except OSError:
        return
    for name in names:
        letters = StateFolder(root / name).dead_letters
        kept = sum(size_bytes(each) for each in segments(letters))
        said = (
            f"`ingest dlq list --mqtt {name}` shows what the service has refused; " if kept else ""
        )
        yield Check(f"mqtt {name}", WARN if kept else OK, said + NOT_OURS)
