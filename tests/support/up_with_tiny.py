"""`ingest up` with tiny_child.py as its gateways and writers. UP_TIMES: its limits, in seconds.

UP_ORPHANS_S and UP_GRACE_S shorten two others.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import uvloop

from ingest.cli.commands import build_parser, load_settings
from ingest.cli.parser import say
from ingest.model.errors import IngestError
from ingest.roles.supervisor import child
from ingest.roles.supervisor import up as up_module
from ingest.roles.supervisor.children import ChildTimes
from ingest.roles.supervisor.up import up

TINY = (sys.executable, "-P", str(Path(__file__).parent / "tiny_child.py"))


def main() -> int:
    """Run it; return the exit code."""
    parsed = build_parser("up").parse_args(sys.argv[1:])
    settings = load_settings(parsed, os.environ).settings
    child.PATIENCE_S = float(os.environ.get("UP_ORPHANS_S", "10"))
    up_module.GRACE_S = float(os.environ.get("UP_GRACE_S", "5"))
    limits = [float(each) for each in os.environ.get("UP_TIMES", "15 3 15").split()]
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(up(settings, announce=say, program=TINY, times=ChildTimes(*limits)))
    except IngestError as error:
        print(f"ingest: {error}", file=sys.stderr)  # noqa: T201  as the command line does
        return 2


if __name__ == "__main__":
    sys.exit(main())
