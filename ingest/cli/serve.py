"""`ingest serve`: the service, on uvloop, until a signal ends it."""

from __future__ import annotations

import argparse
import os
import sys

from ingest.config.settings import Loaded


def add_arguments(parser: argparse.ArgumentParser, settings_flags: argparse.ArgumentParser) -> None:
    """Add nothing: every setting is a flag already."""


def run(_args: argparse.Namespace, loaded: Loaded) -> int:
    """Serve; return 0 once all is safe, 3 if readings were lost."""
    import asyncio  # noqa: PLC0415
    import gc  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    from ingest.app.service import serve  # noqa: PLC0415

    # What is imported stays: to look through it stops the loop for 16 to 53 ms now and then, which
    # is the p99 of a post at half the peak. Without it 5 to 7 ms, measured.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(loaded.settings, announce=_say))


def _say(line: str) -> None:
    """Print at once; whoever started us may have stopped listening, which ends nothing."""
    try:
        print(line, flush=True)
    except BrokenPipeError:  # nor may the last flush turn a clean end into a failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
