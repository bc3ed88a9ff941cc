"""The help of all commands, of `up` too."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from ingest.cli.commands import COMMANDS, build_parser, load_settings, main, split_psql
from ingest.config.settings import Settings

GROUPS = {
    "schema": ("apply", "show"),
    "dlq": ("list", "show", "stats", "replay", "discard"),
    "hold": ("show", "release"),
}
ALL = [
    *([each] for each in COMMANDS),
    *([group, each] for group, its in GROUPS.items() for each in its),
]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print help for a terminal of the usual width."""
    monkeypatch.setenv("COLUMNS", "80")


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the help of a command."""
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def examples(shown: str) -> Iterator[list[str]]:
    """Yield the examples of a help as words."""
    (block,) = re.findall(r"^examples:\n((?:  .*\n)+)", shown, re.MULTILINE)
    yield from map(shlex.split, block.splitlines())


@pytest.mark.parametrize("words", [[], *ALL], ids=" ".join)
def test_each_help_has_two_examples_that_parse(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each help shows two examples of this command that the parser takes."""
    found = list(examples(help_of(capsys, *words)))
    assert len(found) >= 2
    for program, *rest in found:
        assert program == "ingest"
        assert rest[: len(words)] == words
        ours = rest if rest[0] != "psql" else ["psql", *split_psql(rest[1:])[0]]
        args, unknown = build_parser(rest[0]).parse_known_args(ours)
        assert (unknown, args.help_of) == ([], None)


@pytest.mark.parametrize("words", [["dlq", "list"], ["dlq", "replay"], ["hold", "release"]])
def test_help_shows_own_options_before_the_settings(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Own options stand before the settings, and of those only three are shown."""
    shown = help_of(capsys, *words)
    own, settings = shown.split("settings:", 1)
    assert "--" in own.replace("--help", "")
    assert set(re.findall(r"^  (--[a-z-]+)", settings, re.MULTILINE)) == {
        *("--state-dir", "--database-url", "--config")
    }
    assert "ingest config --help" in settings


def test_serve_help_begins_with_what_is_used_most(capsys: pytest.CaptureFixture[str]) -> None:
    """The addresses, the database and the folder are the first options of `serve`."""
    flags = re.findall(r"^  (--[a-z-]+)", help_of(capsys, "serve"), re.MULTILINE)
    assert flags[:5] == ["--listen", "--admin-listen", "--database-url", "--state-dir", "--config"]


@pytest.mark.parametrize("word", ["gateway", "writer", "up"])
def test_help_of_a_role_shows_what_it_uses(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And no embedded server where there is none, nor the journal of `serve`."""
    shown = help_of(capsys, word)
    assert ("embedded" in shown) == (word == "up")
    assert "journal" not in shown.replace("--journal-unsafe", "")
    assert ("--listen" in shown) == (word != "writer")
    assert ("--database-url " in shown) == (word != "gateway")
    assert "--dlq-keep-days" not in shown
    args = build_parser(word).parse_args([word, "--journal-bytes-max", "1GiB"])
    assert load_settings(args, {}).settings.journal_bytes_max == 1 << 30


@pytest.mark.parametrize("words", [[], *([each] for each in GROUPS)], ids=" ".join)
def test_group_without_a_command_prints_its_help(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """`ingest dlq` shows the commands and the examples, on stderr, with exit code 2."""
    shown = help_of(capsys, *words)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", shown)
    for each in GROUPS.get(words[0], ()) if words else COMMANDS:
        assert re.search(rf"^    {each}\s", err, re.MULTILINE), each


def test_help_says_what_the_exit_codes_mean(capsys: pytest.CaptureFixture[str]) -> None:
    """`ingest --help` lists --version and every exit code."""
    shown = help_of(capsys)
    assert "--version" in shown
    codes = re.findall(r"^  (\d+) +\S", shown.split("exit codes:", 1)[1], re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "130"]


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
