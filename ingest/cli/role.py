"""What `ingest gateway` and `ingest writer` have in common: the flags, the loop, the channel."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ingest.cli.parser import Parser, add_all_settings
from ingest.cli.serve import COLLECT_AT
from ingest.cli.terminal import say
from ingest.config.loading import Loaded

if TYPE_CHECKING:
    from ingest.app.role import Place

Say = Callable[[str], None]
RunRole = Callable[["Place", Say], Awaitable[int]]


BROKER_URL = "NATS servers, nats://USER:PASSWORD@HOST:PORT,HOST:PORT"
UNUSED = (  # by both; other roles, which may have the same file of settings, read them
    *("writer_processes", "disk_free_bytes_min"),
    *("buffer", "journal_bytes_max", "journal_unsafe"),
    "dlq_keep_days",
)


def add_arguments(
    parser: Parser, *, first: Sequence[str], unused: Sequence[str], words: Mapping[str, str]
) -> None:
    """Add the settings, and the flag that only `ingest up` uses. See add_all_settings."""
    add_all_settings(
        parser,
        first=("admin_listen", "broker_url", "broker_monitor_url", *first),
        unused={*UNUSED, *unused},
        words={"broker_url": BROKER_URL, **words},
    )
    parser.add_argument("--control-fd", type=int, default=None, help=argparse.SUPPRESS)


def run(args: argparse.Namespace, loaded: Loaded, role: str, run_role: RunRole) -> int:
    """Run a role until somebody ends it; return its exit code."""
    import asyncio  # noqa: PLC0415
    import gc  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    gc.collect()
    gc.freeze()  # see serve.py
    gc.set_threshold(*COLLECT_AT)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(args.control_fd, loaded, role, run_role))


async def _run(control_fd: int | None, loaded: Loaded, role: str, run_role: RunRole) -> int:
    from ingest.app.role import alone, led  # noqa: PLC0415
    from ingest.system import logs  # noqa: PLC0415
    from ingest.system.control import ControlChannel  # noqa: PLC0415
    from ingest.system.limits import raise_open_files_limit  # noqa: PLC0415

    if control_fd is None:
        settings = loaded.settings
        logs.configure(settings.log_level, form=settings.log_format)
        raise_open_files_limit()
        return await run_role(alone(settings, role), say)
    async with await ControlChannel.inherited(control_fd) as channel:
        place = await led(channel)
        logs.configure(
            place.settings.log_level, form=place.settings.log_format, instance=place.instance
        )
        raise_open_files_limit()
        return await run_role(place, lambda _line: None)
