"""Files of secrets: which source wins, and the errors for wrong files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from ingest.config.database_url import RereadUrl
from ingest.config.loading import load
from ingest.config.named_files import default_state_dir, state_dir
from ingest.model.errors import ConfigError
from tests.unit.config.test_settings import refusal, toml

URL = "postgresql://ingest:geheim@db/telemetry"


def secret(tmp_path: Path, raw: bytes) -> str:
    """Write a secret's file; return its path."""
    path = tmp_path / "database_url"
    path.write_bytes(raw)
    return str(path)


def test_file_of_the_url_is_read_again(tmp_path: Path) -> None:
    """The URL changes with the file. What cannot be used, or would block, changes nothing."""
    path = secret(tmp_path, URL.encode())
    url = RereadUrl(load(environ={"INGEST_DATABASE_URL_FILE": path}).settings)
    assert url() == URL
    changed = URL.replace("geheim", "neu")
    secret(tmp_path, f"{changed}\n".encode())
    assert url() == changed
    for raw in (b"", b"two\nlines", b"mysql://x", b"\xff", b"x" * 20_000):
        secret(tmp_path, raw)
        assert url() == changed
    Path(path).unlink()
    assert url() == changed
    os.mkfifo(path)
    assert url() == changed
    plain = load(environ={"INGEST_DATABASE_URL": URL}).settings
    assert RereadUrl(plain)() == URL


def test_each_fault_of_the_urls_file_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log has each change of the fault at once; `fault` is for /readyz, which devices read."""
    path = secret(tmp_path, URL.encode())
    url = RereadUrl(load(environ={"INGEST_DATABASE_URL_FILE": path}).settings)
    url()
    assert url.fault() == ""
    for raw, why in (
        (b"mysql://u:geheim@h/x", "does not begin with postgresql://"),
        (b"", "is empty"),
        (b"two\ngeheim", "must hold one line, and nothing else"),
        (None, "cannot be read: No such file or directory"),
    ):
        if raw is None:
            Path(path).unlink()
        else:
            secret(tmp_path, raw)
        url()
        url()
        assert url.fault() == f"database_url_file {why}; the old URL is still used"
    told = capsys.readouterr()
    assert (told.out + told.err).count("database_url_file_unusable") == 4
    assert "geheim" not in told.out + told.err
    secret(tmp_path, URL.encode())
    url()
    assert url.fault() == ""


@pytest.mark.parametrize("raw", [URL.encode(), f"\ufeff {URL} \r\n".encode(), f"{URL}\n".encode()])
def test_database_url_is_read_from_its_file(tmp_path: Path, raw: bytes) -> None:
    """The path of a secret's file may come from each source."""
    path = secret(tmp_path, raw)
    origins: tuple[dict[str, Any], ...] = (
        {"environ": {"INGEST_DATABASE_URL_FILE": path}},
        {"flags": {"database_url_file": path}},
        {"toml_path": toml(tmp_path, f"database_url_file = {path!r}\n")},
    )
    for sources in origins:
        loaded = load(**{"environ": {}, **sources})
        assert loaded.settings.database_url == URL
        assert loaded.origins["database_url"] == path


def test_url_and_its_file_are_one_setting_said_in_two_ways(tmp_path: Path) -> None:
    """A later source wins, by value or by file; one source that has both is an error.

    So an administrator's `--database-url` works where the service's own URL is in a file.
    """
    path = secret(tmp_path, URL.encode())
    other = "postgresql://admin@db/telemetry"
    by_file = {"INGEST_DATABASE_URL_FILE": path}
    for environ, flags, expected in (
        (by_file, {"database_url": other}, other),
        (by_file, {"database_url": ""}, ""),
        ({"INGEST_DATABASE_URL": other}, {"database_url_file": path}, URL),
        ({"INGEST_DATABASE_URL": other}, {"database_url_file": ""}, other),
        (by_file, {"database_url_file": ""}, ""),
    ):
        assert load(environ=environ, flags=flags).settings.database_url == expected
    told = refusal(environ={"INGEST_DATABASE_URL": URL, **by_file})
    assert told.startswith("of database_url (INGEST_DATABASE_URL) and database_url_file (INGEST_")
    assert "geheim" not in told


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"postgresql://geheim\nmore\n", "must hold one line"),
        (b"postgresql://geheim/" + b"x" * 20_000, "must hold one line"),
        (b"postgresql://geheim\xff", "is not UTF-8 text"),
    ],
    ids=["absent", "empty", "blank", "two lines", "long", "bytes"],
)
def test_unusable_file_of_the_url_is_told_without_its_content(
    tmp_path: Path, raw: bytes | None, words: str
) -> None:
    """The error names the setting, its origin and the file, and never shows the file's content."""
    path = str(tmp_path / "absent") if raw is None else secret(tmp_path, raw)
    told = refusal(environ={"INGEST_DATABASE_URL_FILE": path})
    assert re.match(rf"setting database_url_file \(INGEST_DATABASE_URL_FILE\): .*{words}", told)
    assert path in told
    assert "geheim" not in told


def test_pipe_is_read_if_somebody_writes_it_and_refused_if_nobody_does(tmp_path: Path) -> None:
    """A pipe that has a writer is read; a named pipe without a writer does not block the start."""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "w") as pipe:
            pipe.write(f"{URL}\n")

    writer = Timer(0.1, write)
    writer.start()
    try:
        environ = {"INGEST_DATABASE_URL_FILE": f"/proc/self/fd/{reading}"}
        assert load(environ=environ).settings.database_url == URL
    finally:
        writer.join()
        os.close(reading)
    os.mkfifo(tmp_path / "nobody")
    told = refusal(environ={"INGEST_DATABASE_URL_FILE": str(tmp_path / "nobody")})
    assert "is empty" in told
    assert load(toml_path=tmp_path / "nobody", environ={}).settings.database_url == ""
    assert "larger than" in refusal(toml_path=Path("/dev/zero"), environ={})


def test_home_that_nobody_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `~` without a home folder, as in a container, is an error of the setting."""
    words = "no such user, or one without a home folder"
    nobody = "~nobody-of-that-name/url"
    told = refusal(environ={"INGEST_DATABASE_URL_FILE": nobody})
    assert told == f"setting database_url_file (INGEST_DATABASE_URL_FILE): {nobody}: {words}"
    with pytest.raises(ConfigError, match=f"setting state_dir: {nobody}: {words}"):
        state_dir(load(environ={}, flags={"state_dir": nobody}).settings)
    monkeypatch.setattr(os, "geteuid", lambda: 123_456)
    monkeypatch.setattr(os, "getuid", lambda: 123_456)
    monkeypatch.delenv("HOME", raising=False)
    with pytest.raises(ConfigError, match="choose --state-dir"):
        default_state_dir({})


def test_weak_or_missing_token_of_a_file_is_told_without_being_shown(tmp_path: Path) -> None:
    """The bounds of the setting apply to the file's content."""
    path = tmp_path / "admin_token"
    told = refusal(environ={"INGEST_ADMIN_TOKEN_FILE": str(path)})
    assert told.startswith("setting admin_token_file (INGEST_ADMIN_TOKEN_FILE): ")
    path.write_text("geheim\n")
    told = refusal(environ={"INGEST_ADMIN_TOKEN_FILE": str(path)})
    assert told.startswith(f"setting admin_token ({path}): needs at least 16")
    assert "geheim" not in told
