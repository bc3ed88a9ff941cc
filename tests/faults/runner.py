"""Runs faults, some at a time, and returns their results. Does not: print, or write a report."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ingest.system.files import filesystem_of, is_volatile
from tests.faults.broker_world import BrokerWorld
from tests.faults.machine import NotHere
from tests.faults.matrix import BROKER, SERVE, YEARS, Fault
from tests.faults.server import DEBIAN, make_template
from tests.faults.trial import QUIET_S_MAX, Found
from tests.faults.world import World
from tests.faults.years_world import YearsWorld
from tests.support.tcp_ports import free_port

WORLDS: dict[str, type[World | BrokerWorld]] = {
    SERVE: World,
    BROKER: BrokerWorld,
    YEARS: YearsWorld,
}
TEMPLATE, DEBIAN_TEMPLATE = "template", "template-debian"


class Done(NamedTuple):
    """One fault on one seed. If this machine cannot test it: green unless INGEST_TEST_STRICT=1.

    `artefacts` is the folder that was kept, if the fault is not green. `broken` lists what is not
    as promised. A control or a mutant must be found, and may break nothing else.
    """

    fault: Fault
    seed: int
    found: Found
    took_s: float
    artefacts: Path | None
    missing: str = ""  # why it could not be tested on this machine

    @property
    def broken(self) -> list[str]:
        """What is not as promised; empty if all is."""
        fault, found = self.fault, self.found
        broken = list(found.broken)
        if fault.kind != "fault" and not found.kinds & fault.breaks:
            broken.append("not caught")
        if fault.lost_each_max is not None and found.lost > fault.lost_each_max * found.count:
            broken.append(
                f"I10: {found.lost} lost, {found.count} times {fault.lost_each_max} may be"
            )
        return broken

    @property
    def green(self) -> bool:
        """Whether all was as promised; for a control or a mutant: whether only it was found."""
        if self.missing:
            return os.environ.get("INGEST_TEST_STRICT") != "1"
        return not self.broken


def make_folder() -> Path:
    """Make a folder that an unprivileged database user may enter, not on a volatile disk."""
    base = Path("/tmp")  # noqa: S108  the folder below it gets a name of mkdtemp
    if is_volatile(filesystem_of(base)):
        base = Path("/var/tmp")  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="ingest-faults-", dir=base))
    folder.chmod(0o755)
    return folder


async def run_one(fault: Fault, seed: int, folder: Path, template: Path, *, quick: bool) -> Done:
    """Run one fault in a world of its own; errors are in the result, too."""
    began_s = time.monotonic()
    own = folder / f"{fault.name}-{seed}"
    world = WORLDS[fault.table](fault, seed, own, template, quick=quick)
    missing = ""
    try:
        async with asyncio.timeout(fault.limit_s + 2 * QUIET_S_MAX), world:
            try:
                await fault.harm(world)
                await world.conclude()
            finally:
                world.write_logs()
    except NotHere as error:
        missing = str(error)
    except Exception as error:  # reported, and the others go on
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__} {error} ({Path(where.filename).name}:{where.lineno})"
        world.expect(False, said)
        if own.exists():
            (own / "error.txt").write_text(traceback.format_exc())
    done = Done(fault, seed, world.found, time.monotonic() - began_s, None, missing)
    if done.green or missing:
        await asyncio.to_thread(shutil.rmtree, own, True)
        return done
    return done._replace(artefacts=own)


async def run_all(
    faults: Sequence[Fault],
    seeds: Sequence[int],
    *,
    quick: bool = False,
    jobs: int = 3,
    say: Callable[[Done], None] = lambda _: None,
) -> list[Done]:
    """Run all faults on all seeds, `jobs` at a time, those that take longest first."""
    folder = make_folder()
    try:
        templates = {False: await make_template(folder / TEMPLATE, free_port())}
        if any(each.debian for each in faults) and DEBIAN.exists():
            templates[True] = await make_template(folder / DEBIAN_TEMPLATE, free_port(), DEBIAN)
        free = asyncio.Semaphore(jobs)

        async def one(fault: Fault, seed: int) -> Done:
            async with free:
                if fault.debian not in templates:
                    return Done(fault, seed, Found(), 0.0, None, f"{DEBIAN} is missing")
                template = templates[fault.debian]
                done = await run_one(fault, seed, folder, template, quick=quick)
                say(done)
                return done

        order = sorted(faults, key=lambda each: -each.times)
        work = [one(each, seed) for each in order for seed in seeds]
        return list(await asyncio.gather(*work))
    finally:
        await asyncio.to_thread(_clear, folder)


def _clear(folder: Path) -> None:
    """Remove the template; keep the folders of faults that are not green."""
    for name in (TEMPLATE, DEBIAN_TEMPLATE):
        shutil.rmtree(folder / name, ignore_errors=True)
    if not any(folder.iterdir()):
        folder.rmdir()
