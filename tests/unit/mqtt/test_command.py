"""`ingest mqtt`: which flags do not go together."""

from __future__ import annotations

import pytest

from ingest.cli.commands import main


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--source", "a b"], "ingest sources list"),
        (["--source", ""], "ingest sources list"),
        (["--source", "a", "--ack", "durable"], "--ack is not for a source"),
        (["--source", "a", "--format", "json"], "--format is not for a source"),
        (["--topic", "a/#/b"], "a/#/b"),
    ],
)
def test_wrong_flags_are_told_before_anything_starts(
    flags: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a sentence that names the flag."""
    assert main(["mqtt", "--mqtt-url", "mqtt://127.0.0.1", "--topic", "a", *flags]) == 2
    assert why in capsys.readouterr().err
