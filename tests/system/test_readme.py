"""All commands of README.md, docs/use/posting.md and docs/run/operating.md, in this order.

A shell runs each block of shell without a mark of its own, with the real curl; only the ports are
those of the test's own service.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ingest.cli.commands import COMMANDS, build_parser
from tests.support.documents import (
    DOCUMENTS,
    Fence,
    fences,
    without_fences,
)
from tests.system.service import REPOSITORY, Service, environment

NEEDS_CURL = pytest.mark.skipif(
    shutil.which("curl") is None, reason="no curl: apt-get install -y --no-install-recommends curl"
)
# Pages whose commands run in their order, after those of README.md.
PAGES = (
    "docs/run/operating.md",
    "docs/run/deploy.md",
    "docs/grow/years.md",
    "docs/run/upgrading.md",
)
OPERATING = "\n".join(DOCUMENTS[each] for each in PAGES)
# curl prints the status after the body, and reads no configuration of the user.
CURLRC = 'silent\nshow-error\nnoproxy = "*"\nwrite-out = "\\n%{http_code}"\n'


# What docs/use/senders.md says about an ESP32: body, media type, status, a part of the answer.
SMALL_DEVICES = [
    ('{"device_id":"d","metric":"m","value":1}', "application/json", 202, '"accepted":1'),
    ('{"device_id":"d","metric":"m","value":1}', "text/plain", 415, "unsupported_media_type"),
    ('{"device_id":"d","values":{"t":NaN,"h":4}}', "application/json", 400, "not_json"),
    ('{"device_id":"d","values":{"t":null,"h":4}}', "application/json", 202, '"field":"values.t"'),
    ('{"device_id":"d","metric":"m","value":1,"ts":12}', "application/json", 422, "ts_too_old"),
]


class Answer(NamedTuple):
    """The output of curl."""

    document: Any
    status: int


async def _shell(script: str, folder: Path, env: Mapping[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *("sh", "-euc", script),
        cwd=folder,
        env=environment(env, measured=False),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0, f"{script}\n{output.decode()}"
    return output.decode()


def _checkout(folder: Path) -> None:
    """Make a folder look like a checkout: `./run` and `.venv`, with this interpreter."""
    folder.mkdir()
    run = folder / "run"
    run.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ingest "$@"\n')
    run.chmod(0o755)
    (folder / ".venv").symlink_to(sys.prefix)


class Reader:
    """Runs the blocks of a document in order, as a reader would."""

    def __init__(self, service: Service, folder: Path, state: Path) -> None:
        _checkout(folder)
        (folder / ".curlrc").write_text(CURLRC)
        self._service, self._folder = service, folder
        self._env = {
            "INGEST_STATE_DIR": str(state),
            "PYTHONPATH": str(REPOSITORY),
            "CURL_HOME": str(folder),
        }
        self._variables = ""  # variables that earlier blocks have set
        self.answers: list[Answer] = []
        self.compared = 0
        self.outputs: dict[str, str] = {}

    async def read(self, fence: Fence) -> None:
        """Run one block, or compare the output that it shows with the real one."""
        if fence.language == "json" and fence.text.startswith('{"accepted"'):
            assert json.loads(fence.text) == self.answers[-1].document
            self.compared += 1
        elif fence.language == "json":
            reply = await self._service.post(fence.text.encode(), ack="committed")
            assert reply.status == 200, reply.text
        elif fence.language == "sh" and not (fence.run_by or fence.not_run):
            await self._type(fence.text)

    async def _type(self, text: str) -> None:
        script = text.replace("http://127.0.0.1:8080/", f"{self._service.url}/")
        script = script.replace("http://127.0.0.1:8081/", f"{self._service.admin_url}/")
        assert "127.0.0.1:80" not in script.replace(self._service.url, "").replace(
            self._service.admin_url, ""
        ), "the default ports are those shown"
        await self._service.wait_quiet()  # a reader types more slowly than a batch is written
        output = await _shell(f"{self._variables}\n{script}", self._folder, self._env)
        self._variables += "".join(re.findall(r"^PG=.*\n", text, re.MULTILINE))
        self.outputs[text] = output
        if "curl " in text:
            body, _, status = output.rpartition("\n")
            self.answers.append(Answer(json.loads(body) if body else None, int(status)))


@NEEDS_CURL
async def test_readme_commands_in_their_order_do_what_is_said(open_tmp_path: Path) -> None:
    """The commands of the README give the output that the README shows."""
    state = open_tmp_path / "state"
    async with Service(state) as service:
        reader = Reader(service, open_tmp_path / "iot ingest", state)
        for fence in fences(DOCUMENTS["README.md"]) + fences(DOCUMENTS["docs/use/posting.md"]):
            await reader.read(fence)
        assert [each.status for each in reader.answers] == [202, 200, 200, 202, 202, 202, 202]
        assert reader.compared == 5
        looked = reader.answers[2]
        assert [each["value"] for each in looked.document["readings"]] == [21.5, 21.6]

        for fence in fences(OPERATING):
            await reader.read(fence)
        *_, looked = (each for each in reader.answers if "readings" in (each.document or ()))
        values = [each["value"] for each in looked.document["readings"]]
        assert values == [21.5, 21.7, 21.6, 21.5]
        said = "\n".join(reader.outputs.values())
        assert "1 dead letter replayed: 1 reading, 1 new, 0 duplicates" in said
        assert "\n21.7\n" in said
        assert "state:   accepting" in said
        values = await service.query("select device_id, value from readings order by 1, 2")
        assert [tuple(row.values()) for row in values] == [
            *(("boiler-7", value) for value in (21.5, 21.5, 21.6, 21.7)),
            *(("cellar", value) for value in (11.4, 11.5)),
            *(("room-3", value) for value in (1.0, 21.5, 40.0, 40.0, 415.0, 416.0)),
            *(("urn:dev:mac:0024befffe804ff1", value) for value in (1.0, 21.5, 40.0)),
        ]
        samples = await service.wait_quiet()
        assert samples["ingest_ledger_imbalance_rows"] == 0


async def test_small_devices_get_the_answers_that_senders_md_says(
    open_tmp_path: Path, at_hand: dict[str, Any]
) -> None:
    """Each body of SMALL_DEVICES."""
    async with Service(open_tmp_path / "state", **at_hand) as service:
        for body, media_type, status, found in SMALL_DEVICES:
            reply = await service.post(body.encode(), headers={"Content-Type": media_type})
            assert (reply.status, found in reply.text) == (status, True), reply.text


async def test_readme_backup_restores_what_was_deleted_and_keeps_what_is_new(
    open_tmp_path: Path,
) -> None:
    """Readings of a partition that has left the table come back, and new ones stay."""
    folder = open_tmp_path / "checkout"
    _checkout(folder)
    env = {"INGEST_STATE_DIR": str(open_tmp_path / "state"), "PYTHONPATH": str(REPOSITORY)}
    (dump,) = (fence.text for fence in fences(OPERATING) if "pg_dump" in fence.text)
    (restore,) = (fence.text for fence in fences(OPERATING) if "pg_restore" in fence.text)
    async with Service(open_tmp_path / "state") as service:
        item = {"device_id": "d 1\\t", "metric": "COPY public.readings"}
        ts = int(time.time()) // 86_400 * 86_400 - 3 * 86_400
        posted = [{**item, "ts": ts + n, "value": n / 3} for n in range(500)]
        assert (await service.post(posted, ack="committed")).status == 200
        before = await service.query("select * from readings order by ts")
        await _shell(dump, folder, env)
        day = time.strftime("%Y-%m-%d", time.gmtime(ts))
        await service.query(f"drop table readings_p{day.replace('-', '')}")
        (command,) = re.findall(r"on:\s`(\./run housekeeping run --from )[0-9-]+`", OPERATING)
        await _shell(command + day, folder, env)
        new = {**item, "ts": ts + 1_000, "value": 1}
        assert (await service.post(new, ack="committed")).status == 200
        await _shell(f"{dump.splitlines()[0]}\n{restore}", folder, env)
        after = await service.query("select * from readings order by ts")
    assert after[:-1] == before
    assert after[-1]["value"] == 1


@pytest.mark.slow
async def test_readme_backup_is_restored_into_a_new_state_folder(open_tmp_path: Path) -> None:
    """With its partitions, and the record of the housekeeping; posts are taken before it."""
    folder, (old, new) = open_tmp_path / "checkout", (open_tmp_path / each for each in "ab")
    _checkout(folder)
    envs = [{"INGEST_STATE_DIR": str(each), "PYTHONPATH": str(REPOSITORY)} for each in (old, new)]
    (dump,) = (fence.text for fence in fences(OPERATING) if "pg_dump" in fence.text)
    (restore,) = re.findall(r"`(.+config --print database_url.+readings[.]dump)`", OPERATING)
    item = {"device_id": "d", "metric": "m", "value": 1}
    async with Service(old) as service:
        assert (await service.post({**item, "ts": 1_700_000_000}, ack="committed")).status == 200
        await _shell(dump, folder, envs[0])
    async with Service(new, schema_apply=False) as service:
        assert (await service.post(item)).status == 202
        await _shell(f"{dump.splitlines()[0]}\n{restore}", folder, envs[1])
        await service.wait_rows(2)
        records = await service.query("select from ingest_housekeeping where key like '%p20231114'")
        assert len(records) == 1


def test_readme_commands_in_sentences_are_taken_by_the_parser() -> None:
    """Each command of the service in a sentence of the documents can be typed as it stands."""
    checked = set[str]()
    runbook = (REPOSITORY / "deploy" / "RUNBOOK.md").read_text()
    for path, text in {**DOCUMENTS, "deploy/RUNBOOK.md": runbook}.items():
        for found in re.findall(r"`(?:\./run|ingest) ([^`]+)`", without_fences(text)):
            if not re.search(r"[.][.]|\b[A-Z]{2,}\b|\||\$", found):  # a place for something
                words = shlex.split(found)
                if {"--help", "--version", "psql"} & set(words) or words in (
                    ["forward"],
                    ["mqtt"],
                    ["schema", "view"],
                ):
                    continue
                if words[0].startswith("--"):
                    words = ["serve", *words]
                if words[0] in COMMANDS:
                    _, unknown = build_parser(words[0]).parse_known_args(words)
                    assert unknown == [], f"{path}: {found}"
                    checked.add(found)
    assert {"--listen 0.0.0.0:8080", "schema apply --device-index"} <= checked
