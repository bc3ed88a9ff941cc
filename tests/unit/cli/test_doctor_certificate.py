"""What `ingest doctor` says about a certificate, by its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.cli.doctor import checks
from ingest.cli.doctor.checks import FAIL, OK, WARN, certificate_check
from ingest.config.settings import Settings
from ingest.system.clock import unix_us
from tests.support.certificates import make_certificate


@pytest.mark.parametrize(
    ("past_days", "state", "said"),
    [(0, OK, "valid until 20"), (25, WARN, "put a new one there"), (31, FAIL, "has ended at 20")],
)
def test_state_follows_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, past_days: int, state: str, said: str
) -> None:
    """One that has ended fails: no client connects."""
    now_us = unix_us() + past_days * 86_400_000_000
    monkeypatch.setattr(checks, "unix_us", lambda: now_us)
    cert_file, key_file = make_certificate(tmp_path, days=30)
    found = certificate_check(Settings(tls_cert_file=str(cert_file), tls_key_file=str(key_file)))
    assert (found.state, said in found.detail) == (state, True), found


def test_files_that_cannot_be_used_fail(tmp_path: Path) -> None:
    """The text names them."""
    found = certificate_check(Settings(tls_cert_file="/no.crt", tls_key_file="/no.key"))
    assert found.state == FAIL
    assert "/no.crt" in found.detail
