"""A Debian with systemd and PostgreSQL, in which units run as the heads of their files say.

systemd-nspawn boots it. It has this machine's network, so its ports are those of this machine.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.containers.engine import Failed, command
from tests.support.documents import REPOSITORY, fences
from tests.system.fleet import TABLE_SQL

IMAGES = Path(__file__).parent / "images"
IMAGE = "iot-ingest-try-systemd"
BOOT_S_MAX = 60
CLEAN = ("env", "--ignore-environment", "HOME=/root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
DATABASE = "127.0.0.1:5432/telemetry"


class Machine:
    """A folder that is the root of a Debian, made of an image and the project in /opt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._init = 0

    @asynccontextmanager
    async def booted(self) -> AsyncIterator[None]:
        """Make the root and boot it; at the end shut it down."""
        await self._make()
        child = await asyncio.create_subprocess_exec(
            *("systemd-nspawn", "--quiet", "--directory", str(self._folder)),
            *("--register=no", "--keep-unit", "--resolv-conf=replace-host", "--boot"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(BOOT_S_MAX):
                while not await self._is_up(child.pid):  # noqa: ASYNC110  it tells nobody
                    await asyncio.sleep(0.5)
            psql = "runuser -u postgres -- psql -c"
            await self.run(
                f"{psql} \"create role ingest login password 'PASSWORD'\"\n"
                f"{psql} 'create database telemetry owner ingest'"
            )
            yield
        except TimeoutError:
            raise Failed(f"no boot within {BOOT_S_MAX} s") from None
        finally:
            if child.returncode is None:
                child.send_signal(signal.SIGTERM)  # which shuts it down
                await child.wait()

    async def _make(self) -> None:
        build = ("docker", "build", "--quiet", "--network", "host", "--target", "systemd")
        await command(*build, "--tag", IMAGE, str(IMAGES))
        container = (await command("docker", "create", IMAGE)).strip()
        home = self._folder / "opt" / "iot-ingest"
        home.mkdir(parents=True)
        root, project = (shlex.quote(str(each)) for each in (self._folder, home))
        await command("sh", "-c", f"docker export {container} | tar -x -C {root}")
        await command("docker", "rm", container)
        (self._folder / "etc" / "hosts").write_text("127.0.0.1 localhost\n")  # Docker's own is away
        listed = "git ls-files -z --cached --others --exclude-standard"
        copied = f"{listed} | xargs -0 cp --parents --target-directory {project}"
        await command("sh", "-c", copied, folder=REPOSITORY)

    async def _is_up(self, nspawn: int) -> bool:
        """Return whether PostgreSQL answers, which systemd starts."""
        children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
        if not children:
            return False
        self._init = int(children[0])
        try:
            await self.run("runuser -u postgres -- psql -c 'select 1'")
        except Failed:
            return False
        return True

    async def run(self, script: str) -> str:
        """Run a script in it as root; return its stdout. Raises Failed."""
        words = ("nsenter", "-t", str(self._init), "-m", "-u", "-i", "-n", "-p", "-C")
        return await command(*words, *CLEAN, "sh", "-euc", script)

    async def install(self, unit: str) -> None:
        """Do what the head of a file of deploy/ says, with the database of this machine."""
        head = (REPOSITORY / "deploy" / unit).read_text().split("\n[Unit]")[0]
        steps = "\n".join(re.findall(r"^#   (.*)", head, re.MULTILINE))
        steps = steps.replace("HOST:5432/DATABASE", DATABASE)
        await self.run(f"cd /opt/iot-ingest\n{steps}")

    async def ingest(self, words: str) -> str:
        """Run a command as the runbook says."""
        runbook = (REPOSITORY / "deploy" / "RUNBOOK.md").read_text()
        (function,) = (each.text for each in fences(runbook) if "ingest() (" in each.text)
        return await self.run(f"{function}\ningest {words}")

    async def kill(self, unit: str) -> None:
        """Kill all processes of a unit with SIGKILL; wait until systemd has started it again.

        Debian's PostgreSQL waits for a person.
        """
        show = f"systemctl show --property InvocationID --value {unit}"
        await self.run(
            f"before=$({show})\n"
            f"systemctl kill --signal KILL {unit}\n"
            f'[ "$(systemctl show --property Restart --value {unit})" != no ] ||'
            f" systemctl restart {unit}\n"
            f"timeout {BOOT_S_MAX} sh -euc '"
            f'until [ "$({show})" != "$0" ] && systemctl is-active --quiet {unit}; '
            'do sleep 0.2; done\' "$before"'
        )

    async def stop(self, unit: str) -> None:
        """Stop a unit; its last line must say that nothing was lost. Raises Failed."""
        await self.run(f"systemctl stop {unit}")
        log = await self.run(f"journalctl --unit {unit} --output cat --lines 40")
        if " lost=0" not in log:
            raise Failed(f"the stop did not say lost=0:\n{log}")

    async def url(self, service: str, port: int, index: int = 1) -> str:
        """Return where all units take posts."""
        return f"http://127.0.0.1:{port}"

    async def table(self) -> list[dict[str, Any]]:
        """Return the rows of the table, as fleet.check_table wants them."""
        sql = f"select coalesce(json_agg(t), '[]') from ({TABLE_SQL}) t"
        said = await self.run(f"runuser -u postgres -- psql -d telemetry -qAtc {shlex.quote(sql)}")
        rows: list[dict[str, Any]] = json.loads(said)
        return rows
