"""`ingest token`: what it writes, prints and refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest

from ingest.access.token_lines import (
    NEVER_US,
    TokenEntry,
    certificate_key,
    digest_of,
    entry_line,
    read_entries,
)
from ingest.cli.commands import main
from ingest.cli.doctor.checks import access_check
from ingest.config.settings import Settings
from ingest.system.clock import unix_us
from ingest.system.state_folder import ServiceInfo, StateFolder
from tests.support.commands import Here, Step
from tests.support.receiver import OTHER, line

ENDED = "ended"


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """Run commands here, without the wait for a service that reads the file."""
    monkeypatch.setattr("ingest.cli.token.LOOK_S", 0.0)
    return Here(capsys)


def tokens(folder: Path) -> list[dict[str, Any]]:
    """Return the tokens of a state folder, as `list --json` prints them."""
    return [each._asdict() for each in read_entries(folder / "tokens").by_digest.values()]


async def test_new_prints_the_token_once_and_stores_its_digest(here: Here, tmp_path: Path) -> None:
    """It is the last word; the file is for the owner only; the limits are kept."""
    limits = ("--devices", "a-*", "--devices", "b", "--sources", "readings", "--note", "roof")
    done = await here("token", "new", "garden", "--state-dir", tmp_path, *limits)
    assert done.code == 0
    secret = done.stdout.split()[-1]
    (entry,) = tokens(tmp_path)
    assert entry["digest"] == digest_of(secret)
    assert (entry["devices"], entry["sources"], entry["note"]) == (
        ("a-*", "b"),
        ("readings",),
        "roof",
    )
    file = tmp_path / "tokens"
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    shown = await here("token", "list", "--state-dir", tmp_path)
    assert "garden" in shown.stdout
    assert "live" in shown.stdout
    assert "devices=a-*,b" in shown.stdout
    assert secret not in shown.stdout


@pytest.mark.parametrize(
    "limits",
    [
        ("--devices", ""),
        ("--note", "x" * 501),
        ("--device", "x" * 501),
        ("--device", "\udcff"),
        ("--expires", "9999-12-31T23:59:59-23:59"),
        ("--devices", "x" * 400) * 50,
        ("--certificate", "CN=a,O=b"),
        ("--admin", "read", "--connections", "1"),
    ],
)
async def test_line_that_could_not_be_read_is_never_written(
    here: Here, tmp_path: Path, limits: tuple[str, ...]
) -> None:
    """It would make the whole file unusable: at its next start the service would not start."""
    where = ("--state-dir", tmp_path)
    await here("token", "new", "first", *where)
    before = (tmp_path / "tokens").read_bytes()
    done = await here("token", "new", "garden", *limits, *where)
    assert (done.code, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "tokens").read_bytes() == before


async def test_rotate_keeps_the_limits_and_ends_the_first_later(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are live meanwhile; `disable` asks which one ends."""
    where = ("--state-dir", tmp_path)
    await here("token", "new", "garden", "--device", "x", *where)
    assert (await here("token", "rotate", "garden", "--overlap-days", "7", *where)).code == 0
    first, second = tokens(tmp_path)
    assert first["device"] == second["device"] == "x"
    assert first["ends_us"] != NEVER_US == second["ends_us"]
    listed = await here("token", "list", "--json", *where)
    states = [each["state"].split()[0] for each in json.loads(listed.stdout)["tokens"]]
    assert states == ["live", "live"]
    begin = str(second["digest"])[:8]
    asked = await here("token", "disable", "garden", *where)
    assert (asked.code, asked.stderr.count("\n")) == (2, 1)
    assert f", {begin} (live). End one with --digest BEGIN, or all with --all" in asked.stderr
    monkeypatch.setattr("sys.stdin", terminal := MagicMock())
    for answer, code in (("\n", 2), ("", 2), (f"{begin}\n", 0)):
        terminal.readline.return_value = answer
        assert (await here("token", "disable", "garden", *where)).code == code
    assert [each["ends_us"] <= unix_us() for each in tokens(tmp_path)] == [False, True]
    assert (await here("token", "disable", "garden", *where)).code == 0, "only one is left"
    assert (await here("token", "disable", "garden", *where)).code == 2, "none is live"
    assert "ended" in (await here("token", "list", *where)).stdout


LIMITS = "--posts-per-s 0.5 --readings-per-s 0 --connections 3"
BY_NAME = "--certificate 'boiler 7' --device b7"
# Of each story: commands, and a member of each token that there is then.
STORIES: dict[str, tuple[list[Step], str, list[Any]]] = {
    "leaked": (
        [
            Step("new garden"),
            Step("rotate garden"),
            Step("rotate garden --now"),
        ],
        "ends_us",
        [ENDED, ENDED, NEVER_US],
    ),
    "all": (
        [
            Step("new garden"),
            Step("rotate garden --overlap-days 1"),
            Step("disable garden --all", out=["disabled", "disabled"]),
        ],
        "ends_us",
        [ENDED, ENDED],
    ),
    "limits": (  # 0 is one of them: no limit, whatever the settings say
        [
            Step(f"new garden {LIMITS}"),
            Step("rotate garden"),
            Step(
                "list",
                out=["readings_per_s_max=0", "posts_per_s_max=0.5", "connections_max=3"],
            ),
        ],
        "connections_max",
        [3, 3],
    ),
    "certificate": (  # no token is made: there is nothing to print, and nothing to rotate
        [
            Step(f"new boiler {BY_NAME}", out=["boiler: the certificate boiler 7\n"], lines=1),
            Step(f"new other {BY_NAME}", 2, err=["counts for boiler already"]),
            Step("rotate boiler", 2, err=["renewed"]),
            Step("list", out=["certificate=boiler 7"]),
            Step("disable boiler", out=["boiler 7"]),
            Step("list", out=["ended"]),
            Step(f"new boiler {BY_NAME}", 2, err=["was ended"]),
        ],
        "digest",
        ["certificate:boiler 7"],
    ),
    # It must neither get the same end, nor none without a word.
    "expires": (
        [
            Step("new a --expires 2999-01-01"),
            Step("rotate a", 2, err=["--expires"]),
            Step("rotate a --expires never"),
        ],
        "name",
        ["a", "a"],
    ),
    "second of a name": ([Step("new a"), Step("new a", 2, err=["token rotate a"])], "name", ["a"]),
    "wrong use": (
        [
            Step(words, 2, err=[why], lines=0)
            for words, why in (
                ("new 'a b'", "letters"),
                ("new a --expires tomorrow", "2028-01-01"),
                ("new a --devices x --device y", "not both"),
                ("new a --device 'y-*'", "a name without *"),
                ("new a --formats lines", "there are json, ndjson"),
                ("new a --posts-per-s fast", "no number"),
                ("new a --readings-per-s nan", "no number"),
                ("new a --connections 1.5", "no whole number"),
                ("rotate nobody", "no live token"),
                ("disable nobody", "no live token"),
                ("rotate a --overlap-days nan", "days"),
                ("rotate a --overlap-days 0", "--now"),
                ("new", "NAME"),
            )
        ],
        "name",
        [],
    ),
}


@pytest.mark.parametrize("name", STORIES)
def test_tokens_are_made_rotated_and_ended_as_the_story_says(
    here: Here, tmp_path: Path, name: str
) -> None:
    """What is refused is one sentence, and nothing is written."""
    steps, member, wanted = STORIES[name]
    steps = [step._replace(words=f"token {step.words}") for step in steps]
    assert here.faults(steps, "--state-dir", tmp_path) == []
    now_us = unix_us()
    found = [each[member] for each in tokens(tmp_path)] if wanted else []
    assert [ENDED if member == "ends_us" and it <= now_us else it for it in found] == wanted
    assert (tmp_path / "tokens").exists() == bool(wanted)


async def test_read_only_file_prints_the_line_to_add(here: Here, tmp_path: Path) -> None:
    """A mounted secret: the token works once somebody has added the line. (A link: root may write
    everything.)"""
    real = tmp_path / "real"
    real.write_bytes(b"# mounted\n")
    mounted = tmp_path / "mounted"
    mounted.symlink_to(real)
    done = await here("token", "new", "a", "--tokens-file", mounted)
    assert done.code == 1
    line = done.stderr.splitlines()[-1]
    assert json.loads(line)["sha256"] == digest_of(done.stdout.split()[-1])
    assert real.read_bytes() == b"# mounted\n"


OPEN = ServiceInfo(
    pid=1,
    version="",
    listen="",
    admin_listen="",
    database_url="",
    token="",
    started_us=0,
    is_open=True,
)
HERE_ALL, NEEDED = "everybody on this machine may post", "a token is needed to post; 1 token"
NETWORK = {"listen": "0.0.0.0:8080"}
BOILER = entry_line(TokenEntry("boiler", certificate_key("boiler-7")))
ENDS_SOON = line() + line(OTHER, ends_us=unix_us() + 10**9)
PROXY: dict[str, Any] = {"trusted_proxies": "127.0.0.1"}
# The file of tokens, a running service, settings; what a start would refuse fails. Nobody, the
# whole network, or an end soon is a warning.
ACCESS: list[tuple[bytes | None, ServiceInfo | None, dict[str, Any], str, str]] = [
    (None, OPEN, {}, "ok", HERE_ALL),
    (None, None, {}, "ok", HERE_ALL),
    (None, None, NETWORK, "FAIL", ""),
    (None, None, {**NETWORK, "access": "open"}, "warn", "everybody on the network may post"),
    (None, None, {"access": "token"}, "warn", ""),
    (None, None, {"tokens_file": "/nowhere/none"}, "FAIL", ""),
    (line(), None, NETWORK, "ok", NEEDED),
    (line(), OPEN, {}, "FAIL", "may post until the running service is restarted"),
    (ENDS_SOON, None, {}, "warn", "ends at"),
    (line(admin="read"), None, {}, "ok", HERE_ALL),  # it cannot post
    (BOILER, None, PROXY, "warn", "boiler has a certificate"),
    (BOILER, None, {**PROXY, "client_certificate_header": "X-Name"}, "ok", NEEDED),
    (b"{", None, {}, "FAIL", ""),
]


@pytest.mark.parametrize("case", ACCESS, ids=range(len(ACCESS)))
def test_doctor_says_who_may_post(
    tmp_path: Path, case: tuple[bytes | None, ServiceInfo | None, dict[str, Any], str, str]
) -> None:
    """And whether others may write the file."""
    text, service, settings, state, detail = case
    if text is not None:
        (tmp_path / "tokens").write_bytes(text)
    given = Settings(state_dir=str(tmp_path), **settings)
    found = access_check(given, service)
    assert (found.state, detail in found.detail) == (state, True), found
    if text is not None:
        (tmp_path / "tokens").chmod(0o666)
        assert "everybody may write" in access_check(given, service).detail


async def test_leaked_token_still_counts_while_everybody_may_post(
    here: Here, tmp_path: Path
) -> None:
    """A service that was started before the first token asks for none until it is restarted."""
    folder = StateFolder.open(tmp_path)
    await here("token", "new", "garden", "--state-dir", tmp_path)
    with folder.lock():
        for is_open in (True, False):
            folder.publish(msgspec.structs.replace(OPEN, pid=os.getpid(), is_open=is_open))
            done = await here("token", "rotate", "garden", "--now", "--state-dir", tmp_path)
            assert ("lets everybody post until it is restarted" in done.stderr) is is_open


def test_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No command writes into a file that the service could not read."""
    (tmp_path / "tokens").write_text("{")
    for words in (["list"], ["new", "a"], ["disable", "a"]):
        assert main(["token", *words, "--state-dir", str(tmp_path)]) == 2
        assert "line 1" in capsys.readouterr().err
    (tmp_path / "tokens").write_text("")
    (tmp_path / "tokens").chmod(0o606)
    assert main(["token", "new", "a", "--state-dir", str(tmp_path)]) == 2
    assert "everybody may write to it" in capsys.readouterr().err
