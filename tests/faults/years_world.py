"""A YearsWorld: a World whose table has partitions that leave it, for an archive, all the time.

The readings of its Trial are of today, and stay in the table. Those of its OldDays are of days that
are older than `keep_hot`: partitions are made for them, detached, archived and dropped, made again
for late readings, and merged with their files. It runs `ingest housekeeping run` as a process of
its own; the service may do it too.
Promises: at the end each acknowledged reading of old days must be in the table or in a file, once.
That is counted when all is quiet: no reading held, no dead letter open that comes back by itself,
and nothing due. Does not: judge a fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from loadgen.proof.letter_sources import Local
from tests.faults.matrix import Fault
from tests.faults.server import CHECK
from tests.faults.trial import Found
from tests.faults.world import PATCHED, PLAIN, PROMPT, World
from tests.faults.years_ledger import DAY_US, KEPT_CODES, PREFIX, OldDays, detached, look
from tests.support import constants
from tests.support.processes import output_of
from tests.system.service import REPOSITORY, Done, Service, environment

YEARS: dict[str, object] = {
    "partition_span": "day",
    "keep_hot": "2d",
    "rollups": True,
    "housekeeping_pause_s": 3,
}
LEAVING = frozenset({"detach", "archive", "drop"})  # kinds of steps
RUNS_MAX = 15  # of the housekeeping, until nothing is due
RUN_S_MAX = 180.0
CONFIRMS_MAX = 6
UNDER_WAY = (
    "select from pg_locks l join pg_stat_activity a on a.pid = l.pid where l.locktype = 'advisory' "
    "and l.granted and a.application_name = 'iot-ingest housekeeping'"
)
LEAVES_S_MAX = 8.0  # a run that does nothing to a partition for so long is hit all the same
ON_THEIR_WAY = "select key, value from ingest_housekeeping where starts_with(key, 'archive/')"
STATES = (
    "select distinct value ->> 'state' from ingest_housekeeping where starts_with(key, 'archive/') "
    "and value ->> 'state' <> 'dropped' order by 1"
)


class YearsWorld(World):
    """`async with YearsWorld(fault, seed, folder, template, quick=False) as world:`, once."""

    def __init__(
        self, fault: Fault, seed: int, folder: Path, template: Path, *, quick: bool = False
    ) -> None:
        super().__init__(fault, seed, folder, template, quick=quick)
        self.cold = folder / "cold"
        self.settings = {**PROMPT, **YEARS, "archive_dir": self.cold, **fault.settings}
        self.others: list[Service] = []  # further instances
        today_us = int(self.wall_s() * 1e6) // DAY_US * DAY_US
        self.old = OldDays(self.random, today_us, lambda: [self.service, *self.others])
        self._ways: list[tuple[Callable[[object], Awaitable[None]], float]] = []  # not drawn yet
        self.moments: Counter[str] = Counter()  # what was under way when harm was done
        self.said: list[str] = []  # why steps of housekeeping failed, each once

    async def prepare(self) -> None:
        """Make the table anew, with partitions; then as any World."""
        await self.server.run("drop table readings")
        done = await self.command("schema", "apply")
        assert done.code == 0, done.stderr
        await self.server.run(CHECK)
        await super().prepare()

    async def opened(self) -> None:
        """Post readings of old days; let a person confirm `keep_hot` once."""
        self.old.start()
        await self.answered(20)
        for _ in range(CONFIRMS_MAX):  # another run may be under way, or nothing due yet
            answer = await self.housekeep("--yes")
            if any(each["kind"] in LEAVING for each in answer["did"]):
                break

    async def __aexit__(self, *error: Any) -> None:
        await self.old.stop(within_s=0.1)
        for each in self.others:
            await each.kill()
        await super().__aexit__(*error)

    # Commands of an operator

    def variables(self, **more: object) -> dict[str, str]:
        """Return all settings as environment variables, for commands."""
        settings = {"database_url": self.server.url, "state_dir": self.state, **self.settings}
        return {
            f"INGEST_{name.upper()}": str(value).lower() if value in (True, False) else str(value)
            for name, value in constants.split({**settings, **more})[0].items()
        }

    async def start_command(
        self, *words: str, mutant: str = "", env: Mapping[str, object] | None = None
    ) -> asyncio.subprocess.Process:
        """Start `ingest WORDS`, with a patch of patched.py if one is named."""
        more = {name: str(value) for name, value in (env or {}).items()}
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *(PATCHED if mutant else PLAIN),
            *words,
            cwd=REPOSITORY,
            env=environment(
                {**self.variables(), "FAULTS_FOLDER": str(self.folder), **more}
                | {"FAULTS_MUTANT": mutant}
            ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def command(self, *words: str, mutant: str = "", **env: object) -> Done:
        """Run `ingest WORDS` to its end."""
        process = await self.start_command(*words, mutant=mutant, env=env)
        out, errors = await output_of(process, RUN_S_MAX)
        return Done(process.returncode or 0, out.decode(), errors.decode())

    async def housekeep(self, *words: str, mutant: str = "", **env: object) -> dict[str, Any]:
        """Run `ingest housekeeping run` once; return its answer. Notes why steps were not done."""
        done = await self.command("housekeeping", "run", "--json", *words, mutant=mutant, **env)
        if not done.stdout.startswith("{"):
            self._note(done.stderr.strip())
            return {"did": [], "other_run": False, "failed": True}
        answer: dict[str, Any] = json.loads(done.stdout)
        for each in answer["did"]:
            self._note(each["error"] or each["left"])
        return answer

    async def housekeep_alone(self, *words: str) -> dict[str, Any]:
        """Do the same as `housekeep`, again while another run is under way."""
        for _ in range(RUNS_MAX):
            answer = await self.housekeep(*words)
            if not (answer["other_run"] or "failed" in answer):
                return answer
            await self.sleep(0.1, 0.5)
        raise TimeoutError(f"another run was under way {RUNS_MAX} times")

    def _note(self, said: str) -> None:
        if said and said not in self.said:
            self.said.append(said)

    async def kept(self, *, within_runs: int = RUNS_MAX, mutant: str = "") -> bool:
        """Run the housekeeping until no partition is to leave; return whether that was reached."""
        for _ in range(within_runs):
            answer = await self.housekeep("--yes", mutant=mutant)
            due = [
                each
                for each in answer["did"]
                if each["kind"] in LEAVING or each["error"] or each["left"]
            ]
            if not (due or answer["other_run"] or "failed" in answer):
                return True
            await asyncio.sleep(0.2)
        return False

    # What a fault needs

    async def under_way(self, within_s: float = 30.0) -> None:
        """Wait until a run of the housekeeping is under way."""
        async with asyncio.timeout(within_s):
            while not await self.server.ask(UNDER_WAY):  # noqa: ASYNC110  of another process
                await asyncio.sleep(0.02)

    async def drawn_moment(self) -> None:
        """Wait for a drawn moment of a run: soon after its begin, or while a partition leaves.

        By turns, in a drawn order: 0 to 1.2 s after the begin; up to 0.2 s after a partition has
        gone a step further, by the registry; up to 0.1 s after a file was begun.
        """
        if not self._ways:
            self._ways = [
                (self._nothing, 1.2),
                (self._registry_changes, 0.2),
                (self._file_is_written, 0.1),
            ]
            self.random.shuffle(self._ways)
        way, latest_s = self._ways.pop()
        before = await self.server.ask(ON_THEIR_WAY)
        await self.under_way(within_s=60)
        with contextlib.suppress(TimeoutError):  # then it is any other moment
            async with asyncio.timeout(LEAVES_S_MAX):
                await way(before)
        await self.sleep(0, latest_s)

    async def _nothing(self, _: object) -> None:
        pass

    async def _registry_changes(self, before: object) -> None:
        while await self.server.ask(ON_THEIR_WAY) == before:  # noqa: ASYNC110  of a run
            await asyncio.sleep(0.01)

    async def _file_is_written(self, _: object) -> None:
        already = set(self.cold.glob(".readings*"))
        while not set(self.cold.glob(".readings*")) - already:  # noqa: ASYNC110  of another process
            await asyncio.sleep(0.005)

    async def note_moment(self) -> None:
        """Note how far partitions were on their way when harm was done, by the registry."""
        states = [each[0] for each in await self.server.ask(STATES)]
        if any(self.cold.glob(".readings*")):
            states.append("files being written")
        self.moments[", ".join(states) or "none"] += 1

    async def wait_said(self, text: str, within_s: float = 30.0) -> None:
        """Wait until the service has logged this; expect that it does."""
        try:
            await self.service.wait_line(text, within_s=within_s)
        except TimeoutError:
            self.expect(False, f"{self.fault.name}: the service never said: {text}")

    def expect_said(self, text: str) -> None:
        """Expect that a step of a run was not done, for a reason with this text."""
        found = any(text in each for each in self.said)
        self.expect(found, f"{self.fault.name}: no step said: {text}; but {self.said[-3:]}")

    async def freeze(
        self, process: asyncio.subprocess.Process, least_s: float, most_s: float
    ) -> bool:
        """Stop a process for a drawn time; return False if it had ended before."""
        try:
            process.send_signal(signal.SIGSTOP)
        except ProcessLookupError:
            return False
        try:
            await self.sleep(least_s, most_s)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it was ending when it was stopped
                process.send_signal(signal.SIGCONT)
        return True

    # The end

    @property
    def states(self) -> list[Path]:
        """The state folders of all instances."""
        return [self.state, *(each.state_dir for each in self.others)]

    async def conclude(self) -> Found:
        """Finish all posts, wait until all is quiet, compare, stop the service."""
        await self.old.stop()
        early = await look(self.server, self.cold, self.states)
        missing = self.old.accepted - early.kept
        waiting = early.waiting.total()
        without_letters = missing | (early.waiting.keys() & self.old.accepted - early.stored.keys())
        if self.moments:
            moments = "; ".join(f"{name}: {n}" for name, n in self.moments.most_common())
            self.found.figures.append(f"on their way when harm was done: {moments}")
        self.found.figures.append(
            f"{len(self.old.accepted):,} acknowledged readings of old days; right after the last "
            f"answer {len(without_letters):,} of them were in no table or file, {waiting:,} dead "
            f"letters were to come back; the longest durable answer took {self.old.longest_s:.1f} s"
        )
        found = await super().conclude()
        for each in self.others:
            code, output = await each.stop()
            last = output.splitlines()[-1:]
            orderly = code == 0 and "lost=0" in "".join(last)
            self.expect(orderly, f"I7: another instance did not end in order: {code}, {last}")
        return found

    async def _take_own(self) -> None:
        await super()._take_own()
        await self._wait_quiet()
        kept = await self.kept()
        due = f"I7: steps are due after {RUNS_MAX} runs: {self.said[-2:]}"
        self.expect_quiet(kept, due)
        places = await look(self.server, self.cold, self.states)
        left = await detached(self.server)
        self.expect(not left, f"I7: detached and not archived: {left}")
        self._judge(places.stored, places.letters)
        done = await self.command("archive", "verify")
        self.expect(done.code == 0, f"I4: archive verify: {done.stdout}{done.stderr}")

    def _judge(self, stored: Counter[Any], letters: Counter[Any]) -> None:
        old, found = self.old, self.found
        found.acknowledged += len(old.accepted)
        lost = old.accepted - stored.keys() - letters.keys()
        if "lost" in self.may_come:
            self.note_missing(len(lost), "of old days")
            lost = set()
        twice = {row for row, count in stored.items() if count > 1}
        twice |= stored.keys() & letters.keys()
        strange = stored.keys() - old.sent
        for kind, rows in (("lost", lost), ("twice", twice), ("never_sent", strange)):
            if not rows:
                continue
            found.kinds.add(kind)
            allowed = kind in self.fault.breaks | self.fault.follows
            self.expect(allowed, f"{kind} x {len(rows)} of old days: {sorted(rows)[:1]}")
        found.lost += len(lost)
        found.doubled += len(twice)
        codes = set(old.named) - KEPT_CODES
        self.expect(not codes, f"I5: valid readings of old days were called {sorted(codes)}")
        for each in old.wrong[:3]:
            self.expect(False, f"I5: a reading of an old day was answered with {each}")

    async def _wait_quiet(self) -> None:
        """Wait until nothing is held and no dead letter of old days is to come back."""
        try:
            async with asyncio.timeout(self.quiet_s_max):
                while await self._waits():  # noqa: ASYNC110  of another process
                    await asyncio.sleep(0.3)
        except TimeoutError:
            self.expect_quiet(False, f"I6: not quiet after {self.quiet_s_max:g} s")

    async def _waits(self) -> bool:
        for each in (self.service, *self.others):
            if (await each.metrics())["ingest_readings_held"]:
                return True
        for state in self.states:
            found = await asyncio.to_thread(Local(state).read, PREFIX)
            if found.coming_back:
                return True
        return False
