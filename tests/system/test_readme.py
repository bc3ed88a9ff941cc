"""Every command that the README shows does what the README says, in its order."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.system.service import REPOSITORY, Reply, Service, environment

README = (REPOSITORY / "README.md").read_text()
ADMIN = "http://127.0.0.1:8081"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Fence(NamedTuple):
    """One fenced block: its language and its text."""

    language: str
    text: str


FENCES = [Fence(*each) for each in _FENCE.findall(README)]


async def _curl(service: Service, text: str) -> Reply:
    """Do what a curl line of the README says; only the flags it uses are known."""
    words = shlex.split(text)
    assert words.pop(0) == "curl"
    headers: dict[str, str] = {}
    body, url = b"", ""
    while words:
        word = words.pop(0)
        if word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = words.pop(0).encode()
        else:
            assert not word.startswith("-"), f"the test does not know curl's {word}"
            url = word
    if not body:
        assert url.startswith(ADMIN), "the default port is the one shown"
        return await service.request("GET", url.replace(ADMIN, service.admin_url))
    assert url.startswith("http://127.0.0.1:8080/"), "the default port is the one shown"
    url = url.replace("http://127.0.0.1:8080", service.url)
    return await service.request("POST", url, body=body, headers=headers)


async def _shell(script: str, folder: Path, env: Mapping[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *("sh", "-euc", script),
        cwd=folder,
        env=environment(env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0, f"{script}\n{output.decode()}"
    return output.decode()


def _checkout(folder: Path) -> None:
    """Make a folder look like a checkout: `./run` and `.venv`, both of this very interpreter."""
    folder.mkdir()
    run = folder / "run"
    run.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ingest "$@"\n')
    run.chmod(0o755)
    (folder / ".venv").symlink_to(sys.prefix)


async def test_readme_commands_in_their_order_do_what_is_said(open_tmp_path: Path) -> None:
    """A stranger who types what stands there gets what stands there."""
    folder = open_tmp_path / "iot ingest"
    _checkout(folder)
    env = {"INGEST_STATE_DIR": str(open_tmp_path / "state"), "PYTHONPATH": str(REPOSITORY)}
    answers: list[tuple[Any, Any]] = []
    script = ""
    async with Service(open_tmp_path / "state") as service:
        replies: list[Reply] = []
        outputs: dict[str, str] = {}
        for fence in FENCES:
            if fence.text.startswith(f"curl '{ADMIN}"):
                looked = await _curl(service, fence.text)
                assert looked.status == 200, looked.text
                found = [each["value"] for each in looked.document["readings"]]
                assert found == [21.7, 21.6, 21.5]
            elif fence.text.startswith("curl"):
                replies.append(await _curl(service, fence.text))
            elif fence.language == "json" and fence.text.startswith('{"accepted"'):
                answers.append((json.loads(fence.text), replies[-1].document))
            elif fence.language == "json":
                reply = await service.post(fence.text.encode(), ack="committed")
                assert reply.status == 200, reply.text
            elif fence.language == "sh" and fence.text != "./run\n":
                # Each block runs with the variables of those before it.
                output = await _shell(f"{script}\n{fence.text}", folder, env)
                outputs[fence.text] = output
                script += "".join(re.findall(r"^PG=.*\n", fence.text, re.MULTILINE))
        assert [reply.status for reply in replies] == [202, 200]
        for shown, real in answers:
            assert shown == real
        assert len(answers) == 2
        said = "\n".join(outputs.values())
        assert "boiler-7" in said
        assert "1 letters replayed: 1 readings, 1 new, 0 duplicates" in said
        assert "\n21.7\n" in said
        assert "state:  accepting" in said
        values = await service.query("select value from readings where device_id = 'boiler-7'")
        assert sorted(row["value"] for row in values) == [21.5, 21.6, 21.7]
        samples = await service.wait_quiet()
        assert samples["ingest_ledger_imbalance_rows"] == 0


async def test_readme_backup_restores_what_was_deleted_and_keeps_what_is_new(
    open_tmp_path: Path,
) -> None:
    """A back-up is one that has been restored."""
    folder = open_tmp_path / "checkout"
    _checkout(folder)
    env = {"INGEST_STATE_DIR": str(open_tmp_path / "state"), "PYTHONPATH": str(REPOSITORY)}
    (dump,) = (fence.text for fence in FENCES if "pg_dump" in fence.text)
    (restore,) = (fence.text for fence in FENCES if "pg_restore" in fence.text)
    async with Service(open_tmp_path / "state") as service:
        item = {"device_id": "d 1\\t", "metric": "COPY public.readings"}
        posted = [{**item, "ts": 1_700_000_000 + n, "value": n / 3} for n in range(500)]
        assert (await service.post(posted, ack="committed")).status == 200
        before = await service.query("select * from readings order by ts")
        await _shell(dump, folder, env)
        await service.query("delete from readings where value > 100")
        new = {**item, "ts": 1_700_001_000, "value": 1}
        assert (await service.post(new, ack="committed")).status == 200
        await _shell(f"{dump.splitlines()[0]}\n{restore}", folder, env)
        after = await service.query("select * from readings order by ts")
    assert after[:-1] == before
    assert after[-1]["value"] == 1


def test_readme_leaves_no_command_untested() -> None:
    """What is not run by the tests is marked as text, and needs what a test has not."""
    assert {fence.language for fence in FENCES} == {"sh", "json", "text"}
    texts = [fence.text for fence in FENCES if fence.language == "text"]
    assert all(
        re.match(
            r"export INGEST_DATABASE_URL|psql \"\$ADMIN_URL\"|\./run (loadgen|test)"
            r"|cd deploy\n\./make-secrets\ndocker compose ",
            text,
        )
        for text in texts
    )
