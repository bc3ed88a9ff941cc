"""What `ingest doctor` finds at the broker: its streams, its servers, its dead letters."""

from __future__ import annotations

from ingest.app.broker import wanted_dead_letters, wanted_stream
from ingest.broker import manage, monitor
from ingest.broker.messages import StreamMessages
from ingest.broker.roles import DEAD_LETTERS
from ingest.broker.streams import Wanted
from ingest.cli.doctor_database import FAIL, WARN, Check, judged
from ingest.cli.find_broker import broker
from ingest.config.folders import state_dir
from ingest.config.settings import Settings
from ingest.embedded.broker import running_broker
from ingest.model.errors import IngestError
from ingest.system.state_folder import StateFolder


async def broker_checks(settings: Settings) -> list[Check]:
    """Check the configured broker, or the one that runs in the state folder. None: no findings."""
    folder = StateFolder(state_dir(settings))
    try:
        if not settings.broker_url and running_broker(folder.broker) is None:
            return []
        return await _checks(settings)
    except IngestError as error:
        return [Check("broker", FAIL, str(error))]


async def _checks(settings: Settings) -> list[Check]:
    wanted: list[Wanted] = [wanted_stream(settings), wanted_dead_letters(settings)]
    async with broker(settings) as reached:
        found = [await manage.look(reached.connection, each.names) for each in wanted]
        letters = await StreamMessages(reached.connection, DEAD_LETTERS).find_state()
    altered, degraded = (
        [str(fault) for there, each in zip(found, wanted, strict=True) for fault in of(there, each)]
        for of in (manage.altered, manage.degraded)
    )
    if not settings.broker_unsafe:
        altered += map(str, monitor.monitor_faults(reached.monitors))
    kind = "configured" if settings.broker_url else "embedded"
    waiting = 0 if letters is None else letters.messages
    return [
        judged(
            "broker",
            f"answers ({kind}); its streams are as they must be",
            (altered, FAIL, f"{'; '.join(altered)}. See `ingest stream check`"),
            (degraded, WARN, "; ".join(degraded)),
        ),
        judged(
            "dead letters of the broker",
            "none",
            (waiting, WARN, f"{waiting:,} waiting; see `ingest dlq list`"),
        ),
    ]
