"""The demo as a new user runs it: it starts, posts, shows figures, stops, leaves no process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from ingest.system.state_folder import running_service
from loadgen.demo.folder import DemoFolder
from tests.system.database import give_data
from tests.system.service import REPOSITORY, environment, wait_gone

PORTS = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")


class Demo:
    """A running demo and the lines it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def wait_line(self, pattern: str, within_s: float = 40) -> str:
        """Read on until a line matches."""
        assert self.process.stdout is not None
        async with asyncio.timeout(within_s):
            async for raw in self.process.stdout:
                self.lines.append(raw.decode().rstrip())
                if re.search(pattern, self.lines[-1]):
                    return self.lines[-1]
        raise AssertionError(f"no {pattern!r} in:\n" + "\n".join(self.lines))

    async def end(self, within_s: float = 40) -> int:
        """Read to the end; return the exit code."""
        assert self.process.stdout is not None
        async with asyncio.timeout(within_s):
            async for raw in self.process.stdout:
                self.lines.append(raw.decode().rstrip())
            return await self.process.wait()


@asynccontextmanager
async def _demo(state_dir: Path | None, *flags: str, **env: str) -> AsyncIterator[Demo]:
    where = ("--state-dir", str(state_dir)) if state_dir else ()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "loadgen.demo", *where, *flags),
        cwd=REPOSITORY,
        env=environment(env, measured=False),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    demo = Demo(process)
    try:
        yield demo
    finally:
        if process.returncode is None:
            process.kill()
        await demo.end()


@pytest.mark.slow
async def test_demo_until_ctrl_c_stores_what_was_accepted_and_leaves_nothing(
    open_tmp_path: Path,
) -> None:
    """All accepted readings are committed; the shell's database and folder stay unchanged.

    The demo's folder lies beside that of the service, and is removed at the end.
    """
    usual = open_tmp_path / "the usual"
    env = {"INGEST_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/production"}
    folder = open_tmp_path / "the usual-demo"
    async with _demo(None, *PORTS, "--rate", "600", INGEST_STATE_DIR=str(usual), **env) as demo:
        await demo.wait_line("^200 devices post about 600 readings/s to http://")
        look = await demo.wait_line("^look at the data: ")
        assert f"--state-dir '{folder}'" in look
        await demo.wait_line(f"^its folder: {folder} .removed at the end; --keep keeps it")
        await demo.wait_line(r"posts/s \| [1-9][0-9,]* readings accepted \| [1-9][0-9,]* committed")
        info = running_service(folder)
        assert info is not None
        connection = await asyncpg.connect(info.database_url)
        metrics = await connection.fetch("select metric, count(*) from readings group by 1")
        await connection.close()
        demo.process.send_signal(signal.SIGINT)
        code = await demo.end()
    assert code == 0, demo.lines
    assert {row["metric"] for row in metrics} == {
        *("temperature", "humidity", "power", "voltage", "door_open", "battery")
    }
    (accepted,) = re.findall(r"fleet stopped: ([0-9,]+) readings accepted", "\n".join(demo.lines))
    count = accepted.replace(",", "")
    assert demo.lines[-2] == f"drained: committed={count} dead_lettered=0 held=0 lost=0"
    assert demo.lines[-1] == f"removed: {folder}"
    assert "key=" not in "\n".join(demo.lines), "the output may be a log"
    assert list(open_tmp_path.iterdir()) == []
    await wait_gone(info.pid)


def test_demo_folder_is_removed_only_if_this_demo_has_made_it(tmp_path: Path) -> None:
    """What was there before stays, and so does what --keep kept, or what a service uses.

    A demo that was killed has left its folder. If a service then ran there, its readings stay.
    """
    mine, other = tmp_path / "mine", tmp_path / "other"
    other.mkdir()
    for path, keep, goes in ((mine, False, True), (mine, True, False), (other, False, False)):
        folder = DemoFolder(path, keep=keep)
        folder.make()
        assert (folder.is_temporary, folder.remove(), path.exists()) == (goes, goes, not goes)
    used = DemoFolder(tmp_path / "used", keep=False)
    used.make()
    info = {"pid": os.getpid(), "listen": "h:1", "admin_listen": "h:2", "database_url": ""}
    (used.path / "service.json").write_text(json.dumps(info))
    assert not used.remove()
    (used.path / "service.json").unlink()
    for path in (mine, used.path):
        later = DemoFolder(path, keep=False)
        later.make()
        assert (later.is_temporary, later.remove()) == (False, False)
    assert used.remove()


async def test_demo_killed_takes_its_service_along(open_tmp_path: Path) -> None:
    """When the demo is killed, its service ends too."""
    await give_data(open_tmp_path / "demo")
    async with _demo(open_tmp_path / "demo", *PORTS) as demo:
        await demo.wait_line("^Ctrl-C stops")
        info = running_service(open_tmp_path / "demo")
        assert info is not None
        demo.process.kill()
        await demo.process.wait()
        await wait_gone(info.pid)
