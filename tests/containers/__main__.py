"""`./run containers`: the image, the Compose files, pods and units run under load and kills.

Exit codes: 0 each acknowledged reading is in the table, once and unaltered, 1 not so, 2 a program
that runs them is missing, or wrong use.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

from tests.containers.engine import Failed, NoEngine, check_programs, command
from tests.containers.trials import TRIALS, Place, Trial, build, kubernetes
from tests.support.documents import REPOSITORY

HERE = Path(__file__).parent


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="./run containers",
        description="Builds the image with Docker, and runs each Compose file of deploy/ under a\n"
        "project name of its own, on the ports of the file; the pods of deploy/kubernetes with\n"
        "podman; and the units of systemd in a Debian of their own, with systemd-nspawn. It kills\n"
        "the service, each role, the broker of the roles and the database while a fleet posts;\n"
        "of several equal pods one. All that was acknowledged must be in the table.",
        epilog="examples:\n  ./run containers\n  ./run containers --only compose.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--only",
        action="append",
        choices=[*TRIALS],
        help="run only this; may be repeated",
    )
    made.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="SERVICE",
        help="do not start this service, whose image cannot be had; may be repeated",
    )
    return made


async def run(given: argparse.Namespace) -> int:
    """Run the chosen trials one after another; return the exit code."""
    chosen = {name: TRIALS[name] for name in TRIALS if name in (given.only or TRIALS)}
    await check_programs(each for trial in chosen.values() for each in trial.programs)
    os.environ |= {"MQTT_URL": "mqtt://broker", "MQTT_TOPIC": "sensors/#"}
    with tempfile.TemporaryDirectory(prefix="containers-", dir="/var/tmp") as folder:
        deploy = Path(folder, "deploy")  # with passwords of its own
        shutil.copytree(REPOSITORY / "deploy", deploy, ignore=shutil.ignore_patterns("secrets"))
        for each in ("broker.yaml", "mosquitto.conf"):
            shutil.copy(HERE / each, deploy)
        await command(str(deploy / "make-secrets"))
        password = deploy / "secrets" / "mqtt_password"
        password.write_text("unused\n")
        password.chmod(0o444)
        if not await _ended(partial(build, REPOSITORY), "the image"):
            return 1
        place = Place(Path(folder), given.without)
        # Those that publish the ports of their files, one after another; the pods beside them.
        beside = {name: trial for name, trial in chosen.items() if trial.at is kubernetes}
        rest = {name: trial for name, trial in chosen.items() if name not in beside}
        green = await asyncio.gather(*(_in_turn(place, each) for each in (rest, beside)))
    return 0 if all(green) else 1


async def _in_turn(place: Place, trials: Mapping[str, Trial]) -> bool:
    """Run these trials one after another; return whether all went well."""
    ends = [await _ended(partial(trial.at, place), name) for name, trial in trials.items()]
    return all(ends)


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
