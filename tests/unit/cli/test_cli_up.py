"""`ingest up`: its flags; --writers is a number of processes there."""

from __future__ import annotations

import pytest

from ingest.cli.commands import build_parser, load_settings, main
from ingest.config.settings import Settings


def settings_of(*words: str, **environ: str) -> Settings:
    """Return the settings of a command line."""
    return load_settings(build_parser(words[0]).parse_args(words), environ).settings


def test_writers_are_processes_for_up_alone() -> None:
    """The setting of that name keeps its meaning in the environment, and has another flag."""
    flags = ("--gateways", "3", "--writers", "4")
    found = settings_of("up", *flags, INGEST_WRITERS="5")
    assert (found.gateways, found.writer_processes, found.writers) == (3, 4, 5)
    found = settings_of("up", "--writer-connections", "6", "--writer-processes", "7")
    assert (found.gateways, found.writer_processes, found.writers) == (1, 7, 6)
    found = settings_of("serve", "--writers", "4")
    assert (found.writer_processes, found.writers) == (1, 4)


def test_help_of_up_begins_with_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    """Each flag once; those of the processes first."""
    with pytest.raises(SystemExit):
        main(["up", "--help"])
    shown = capsys.readouterr().out
    first = shown.split("Most used:")[1].split("\n\n")[0]
    for flag in ("--listen", "--gateways", "--writers", "--writer-connections", "--config"):
        assert f"{flag} " in first
        assert shown.count(f"  {flag} ") == 1
