"""The service with TLS and our own clients, as real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.certificates import make_certificate
from tests.system.service import Service, run_command

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


def _tls(cert_file: Path, key_file: Path) -> tuple[object, ...]:
    return ("--tls-cert-file", cert_file, "--tls-key-file", key_file)
