"""The apps of docs/use/library.md, as a reader starts them: real servers, a real database."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.path.recorded.service import run_sql
from tests.support.asking import first_answer
from tests.support.documents import DOCUMENTS, fences
from tests.support.packages import NotInstalled, installed
from tests.support.processes import output_of
from tests.support.tcp_ports import free_port
from tests.system.service import REPOSITORY, environment

LINES_MAX = 25
FASTAPI = Path(__file__).parent / "requirements-fastapi.lock"
ITEMS = [{"device_id": "a", "metric": "t", "value": 1.5}, {"device_id": "a", "metric": "t"}]
START_S_MAX, END_S_MAX = 20.0, 20.0


def example(first: str) -> str:
    """Return the program of the document that begins so."""
    (found,) = [
        e.text for e in fences(DOCUMENTS["docs/use/library.md"]) if e.text.startswith(first)
    ]
    return found


@contextlib.asynccontextmanager
async def running(
    text: str, folder: Path, url: str, *words: str, path: str = ""
) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """Run a program as `app.py` in a folder; give a client, and its address."""
    port = free_port()
    text = text.replace("postgresql://localhost/readings", url).replace("8080", str(port))
    text = text.replace('state_dir="', 'database_unsafe=True, state_dir="')
    (folder / "app.py").write_text(text)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *(word.format(port=port) for word in words)),
        cwd=folder,
        env=environment({"PYTHONPATH": f"{REPOSITORY}:{path}"}),
        stdout=PIPE,
        stderr=STDOUT,
    )
    async with aiohttp.ClientSession() as client:
        address = f"http://127.0.0.1:{port}"
        try:
            async with asyncio.timeout(START_S_MAX):
                await first_answer(
                    lambda: client.get(address), aiohttp.ClientConnectorError, within_s=START_S_MAX
                )
            yield client, address
        finally:
            process.send_signal(signal.SIGINT)
            output, _ = await output_of(process, END_S_MAX)
    assert process.returncode == 0, output.decode()


async def post(client: aiohttp.ClientSession, url: str, items: Any) -> tuple[int, Any]:
    """Post as JSON; return status and document."""
    async with client.post(url, json=items) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_app_of_aiohttp(database_url: str, open_tmp_path: Path) -> None:
    """It takes posts, and puts readings of its own; its end leaves all of them in the table."""
    text = example('"""An app of aiohttp')
    assert len(text.splitlines()) <= LINES_MAX
    async with running(text, open_tmp_path, database_url, "app.py") as (client, address):
        status, said = await post(client, f"{address}/v1/readings", ITEMS)
        assert (status, said["accepted"], said["dead_lettered"]) == (202, 1, 1)
        assert await post(client, f"{address}/door", None) == (200, {"accepted": 1})
        async with client.get(f"{address}/livez") as answer:
            assert answer.status == 404  # it is the app's
    rows = await run_sql(database_url, "select device_id, metric, value from readings order by 1")
    assert [tuple(row) for row in rows] == [("a", "t", 1.5), ("door", "opened", 1.0)]


@pytest.mark.slow  # it installs FastAPI, once
async def test_app_of_fastapi(database_url: str, open_tmp_path: Path) -> None:
    """Its own handler answers; what cannot be kept gets the status that devices know."""
    try:
        path = await asyncio.to_thread(installed, FASTAPI, "fastapi")
    except NotInstalled as why:
        pytest.skip(f"no FastAPI: {why}")
    text = example('"""An app of FastAPI')
    words = ("-m", "uvicorn", "app:app", "--port", "{port}")
    async with running(text, open_tmp_path, database_url, *words, path=str(path)) as (client, at):
        status, said = await post(client, f"{at}/readings", ITEMS)
        assert (status, said["accepted"], said["dead_lettered"]) == (202, 1, 1)
        assert said["errors"][0]["code"] == "missing_field"
        assert (await post(client, f"{at}/readings", []))[0] == 422
        async with client.post(
            f"{at}/readings", data=b"a,b", headers={"Content-Type": "text/csv"}
        ) as answer:
            assert answer.status == 415
    rows = await run_sql(database_url, "select device_id, metric, value from readings")
    assert [tuple(row) for row in rows] == [("a", "t", 1.5)]
