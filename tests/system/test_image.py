"""The Dockerfile's commands run in a clean folder, and the resulting image runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.support.tcp_ports import free_port
from tests.system.database import Database
from tests.system.image import Image, build

UID = 10001
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes the image's user: run it as root"),
]


@contextmanager
def container(image: Image, ports: list[int], secret: Path) -> Iterator[subprocess.Popen[str]]:
    """Start ENTRYPOINT and CMD as the image's user, on ports of the loopback."""
    environ = image.environ | {
        "INGEST_DATABASE_URL_FILE": str(secret),
        "INGEST_LISTEN": f"127.0.0.1:{ports[0]}",
        "INGEST_ADMIN_LISTEN": f"127.0.0.1:{ports[1]}",
    }
    process = subprocess.Popen(
        image.command("ENTRYPOINT") + image.command("CMD"),
        env=environ,
        cwd=image.moved(image.words["WORKDIR"]),
        user=UID,
        group=UID,
        extra_groups=[],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def health(image: Image, port: int) -> int:
    """Run the command of HEALTHCHECK; return its exit code."""
    words = [each.replace("8081", str(port)) for each in image.command("HEALTHCHECK")]
    return subprocess.run(words, env=image.environ, capture_output=True, check=False).returncode


def _post(port: int, body: bytes) -> int:
    line = HTTPConnection("127.0.0.1", port, timeout=15)
    try:
        headers = {"Content-Type": "application/json"}
        line.request("POST", "/v1/readings?ack=committed", body, headers)
        return line.getresponse().status
    finally:
        line.close()


def _written_below(root: Path, uid: int) -> list[str]:
    return [str(each) for each in root.rglob("*") if each.lstat().st_uid == uid]


async def test_image_is_built_and_serves(open_tmp_path: Path) -> None:
    """Posts, probes and an orderly stop work for an unprivileged user on a read-only root."""
    image = await asyncio.to_thread(build, open_tmp_path)
    users = image.recorded.read_text()
    assert f"groupadd --gid {UID} iot-ingest" in users
    assert f"useradd --uid {UID} --gid {UID}" in users
    state = image.root / "var/lib/iot-ingest"
    assert (state.stat().st_uid, state.stat().st_mode & 0o777) == (UID, 0o700)
    assert _written_below(image.root / "opt", UID) == []
    assert not (image.root / "opt/venv/bin/pip").exists()
    database_port, *ports = (free_port() for _ in range(3))
    async with Database(open_tmp_path / "db", database_port) as database:
        secret = open_tmp_path / "database_url"
        secret.write_text(database.url + "\n")
        assert await asyncio.to_thread(health, image, ports[1]) != 0
        with container(image, ports, secret) as process:
            async with asyncio.timeout(30):
                while await asyncio.to_thread(health, image, ports[1]) != 0:
                    assert process.poll() is None, process.communicate()[0]
                    await asyncio.sleep(0.2)
            reading = {"device_id": "d", "metric": "m", "ts": "2026-05-01T12:00:00Z", "value": 1}
            body = json.dumps(reading).encode()
            async with asyncio.timeout(20):
                while (status := await asyncio.to_thread(_post, ports[0], body)) != 200:
                    assert status == 503, "nothing but starting"
                    await asyncio.sleep(0.1)
            assert image.words["STOPSIGNAL"] == "SIGTERM"
            process.terminate()
            said = (await asyncio.to_thread(process.communicate))[0]
            assert process.returncode == 0, said
            assert "lost=0" in said
        assert len(await database.run("select from readings")) == 1
    assert _written_below(image.root / "opt", UID) == []
    assert _written_below(state, UID), "it kept its files in the volume"
