"""`./run containers`: the image is built, and each Compose file runs under load and kills.

Exit codes: 0 each acknowledged reading is in the table, once and unaltered, 1 not so, 2 there is no
engine, or wrong use.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from tests.containers.compose import Project
from tests.containers.engine import Failed, NoEngine, check_engine, command
from tests.containers.trials import TRIALS, build
from tests.support.documents import REPOSITORY

HERE = Path(__file__).parent


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="./run containers",
        description="Builds the image with Docker, and runs each Compose file of deploy/ under a "
        "project name of its own, on the ports of the file. Each container is killed while a fleet "
        "posts. All that was acknowledged must be in the table.",
        epilog="examples:\n  ./run containers\n  ./run containers --only compose.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--only", choices=[*TRIALS], help="run only this file")
    made.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="SERVICE",
        help="do not start this service, whose image cannot be had; may be repeated",
    )
    return made


async def run(given: argparse.Namespace) -> int:
    """Run the chosen files one after another; return the exit code."""
    await check_engine()
    os.environ |= {"MQTT_URL": "mqtt://broker", "MQTT_TOPIC": "sensors/#"}
    green = True
    with tempfile.TemporaryDirectory(prefix="containers-") as folder:
        deploy = Path(folder, "deploy")  # with passwords of its own
        shutil.copytree(REPOSITORY / "deploy", deploy, ignore=shutil.ignore_patterns("secrets"))
        for each in ("broker.yaml", "mosquitto.conf"):
            shutil.copy(HERE / each, deploy)
        await command(str(deploy / "make-secrets"))
        _keep(deploy / "secrets" / "mqtt_password", "unused\n")
        if not await _ended(partial(build, REPOSITORY), "the image"):
            return 1
        for name, (trial, more) in TRIALS.items():
            if given.only in (None, name):
                project = Project(deploy, (name, *more), given.without)
                green = await _ended(partial(_within, project, trial), name) and green
    return 0 if green else 1


def _keep(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o444)


async def _within(project: Project, trial: Callable[[Project], Awaitable[None]]) -> None:
    async with project.up():
        await trial(project)


async def _ended(work: Callable[[], Awaitable[None]], name: str) -> bool:
    """Do the work; print how it ended and how long it took, and return whether it is well."""
    began_s = time.monotonic()
    fault = ""
    try:
        await work()
    except Failed as error:
        fault = f"\n{error}"
    took_s = time.monotonic() - began_s
    print(f"{'RED' if fault else 'ok':<4} {name} ({took_s:.0f} s){fault}", flush=True)
    return not fault


def main(words: list[str] | None = None) -> int:
    """Run the chosen files; return the exit code."""
    given = parser().parse_args(words)
    try:
        return asyncio.run(run(given))
    except NoEngine as error:
        print(f"./run containers: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
