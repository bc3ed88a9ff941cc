"""The service with TLS and our own clients, as real processes."""

from __future__ import annotations

import asyncio
import json
import ssl
from functools import partial
from pathlib import Path

import pytest

from tests.support.certificates import make_certificate, trusting
from tests.support.documents import commands, marked
from tests.support.receiver import Client
from tests.support.supervisors import Devices
from tests.system.service import Service, run_command
from tests.system.test_up import Up, restart

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


async def test_our_clients_find_it_and_check_its_certificate(open_tmp_path: Path) -> None:
    """`verify`, `run` and `csv`; a client that does not trust the certificate says so."""
    cert_file, key_file = make_certificate(open_tmp_path)
    _, other_key = make_certificate(open_tmp_path, "other")
    state, report = open_tmp_path / "state", open_tmp_path / "report.json"
    file = open_tmp_path / "a.csv"
    file.write_text("timestamp,value\n2026-05-01 00:00:00,21.5\n")
    async with Service(state, tls_cert_file=cert_file, tls_key_file=key_file) as service:
        assert service.url.startswith("https://127.0.0.1:")
        here, ours = ("--state-dir", state), ("--ca", cert_file)
        proven = await run_command(
            *("loadgen", "verify", *here, "--duration-s", 2, "--report", report), within_s=60
        )
        assert proven.code == 0, proven
        assert json.loads(report.read_text())["summary"]["readings"]["acknowledged"] > 1_000
        for words in (
            ("run", *here, "--duration-s", 1),
            ("run", "--url", service.url, *ours, "--duration-s", 1),
            ("csv", file, "--device", "a", "--metric", "b", "--url", service.url, *ours),
        ):
            done = await run_command("loadgen", *words)
            assert done.code == 0, done
        doubting = await run_command("loadgen", "run", "--url", service.url, "--duration-s", 1)
        assert doubting.code == 2
        assert "self-signed certificate" in doubting.stderr
        told = await run_command("ingest", "doctor", *here, *_tls(cert_file, key_file))
        assert f"https://{service.url.removeprefix('https://')}" in told.stdout
        assert "certificate " in told.stdout
    refused = await run_command("ingest", "serve", *here, *_tls(cert_file, other_key))
    assert refused.code == 2
    assert f"{cert_file} and {other_key} are not a certificate" in refused.stderr


class Secret(Devices):
    """Devices that post with TLS, each time another reading."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        super().__init__(url.removeprefix("https://"))
        self.posted = self.acknowledged = 0
        self.connect = partial(Client.connect, context=context)

    def body(self) -> bytes:
        """Return the next post."""
        self.posted += 1
        ts = 1_750_000_000_000 + self.posted
        return b'{"device_id":"d1","metric":"t","ts":%d,"value":21.5}' % ts

    def answered(self, status: int, body: bytes, _posted: bytes) -> None:
        """Note what became of a post."""
        if status == 202:
            self.acknowledged += 1
        else:
            self.faults.append(f"{status} {body!r}")


async def test_rolling_restarts_reset_and_refuse_nobody(open_tmp_path: Path) -> None:
    """Twice all processes are new; each post of new and old connections is answered and stored."""
    cert_file, key_file = make_certificate(open_tmp_path)
    async with Up(
        open_tmp_path / "state", gateways=2, tls_cert_file=cert_file, tls_key_file=key_file
    ) as service:
        await service.wait_state("accepting")
        devices = Secret(service.url, trusting(cert_file))
        async with devices.posting(100, kept=10):
            await restart(service, 2)
        assert devices.faults == []
        assert devices.acknowledged == devices.posted > 100
        async with asyncio.timeout(30):
            while await _rows(service) < devices.posted:  # noqa: ASYNC110  of another process
                await asyncio.sleep(0.1)
        assert await _rows(service) == devices.posted
        code, output = await service.stop()
    assert code == 0, output
    assert "held=0 lost=0" in output


async def _rows(service: Service) -> int:
    (rows,) = await service.query("select count(*) from readings")
    return int(rows["count"])


def _tls(cert_file: Path, key_file: Path) -> tuple[object, ...]:
    """Return the flags of docs/run/deploy.md, but for the address."""
    (block,) = marked("docs/run/deploy.md", "test_tls.py")
    ((_, _, *flags),) = commands(block)
    files: dict[str, object] = {"server.crt": cert_file, "server.key": key_file}
    return tuple(files.get(each, each) for each in flags)
