"""Tokens: their lines in the file, and what they allow."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Iterator

import pytest

from ingest.access.token_lines import (
    NEVER_US,
    TokenEntry,
    certificate_key,
    digest_of,
    end_line,
    entry_line,
    new_secret,
)
from ingest.access.tokens import DEVICES_KNOWN_MAX, Identity, is_open
from ingest.model.errors import StartError
from ingest.system.clock import unix_us
from tests.support.receiver import OTHER, SECRET, end, entries_of, in_force, line, put


def test_only_the_token_itself_is_found() -> None:
    """Not its digest, not a part of it, not the name; any text is only a wrong token."""
    tokens = in_force(line())
    found = tokens.find(SECRET)
    assert found is not None
    assert found.entry.name == "garden"
    wrong = (OTHER, SECRET[:-1], SECRET + " ", "", "garden", found.entry.digest, "\0", "\udcff")
    assert not any(map(tokens.find, (*wrong, "ü", "x" * 10**6)))


def test_identity_stays_until_its_entry_changes() -> None:
    """Heads that are known keep it. A changed, removed or ended token makes it dead."""
    tokens = in_force(line(), line(OTHER))
    first, other = tokens.find(SECRET), tokens.find(OTHER)
    assert first
    assert other
    put(tokens, line(), line(OTHER, devices=("a",)))
    assert tokens.find(SECRET) is first
    assert first.live
    assert not other.live
    changed = tokens.find(OTHER)
    assert changed
    assert changed.allows
    assert not changed.allows("b")
    put(tokens, line(), end(), line(OTHER))
    assert not first.live
    assert tokens.find(SECRET) is None
    put(tokens)
    assert tokens.find(OTHER) is None
    assert not changed.live
    put(tokens, line())
    assert tokens.find(SECRET), "a token that comes back is live again"


def test_token_ends_at_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused from then on; `next_end_us` says when to look again."""
    now_us = unix_us()
    tokens = in_force(line(ends_us=now_us + 10**9), line(OTHER, ends_us=now_us + 2 * 10**9))
    first, second = tokens.find(SECRET), tokens.find(OTHER)
    assert first
    assert second
    assert tokens.next_end_us == now_us + 10**9
    monkeypatch.setattr("ingest.access.tokens.unix_us", lambda: now_us + 10**9)
    tokens.expire()
    assert not first.live
    assert second.live
    assert tokens.next_end_us == now_us + 2 * 10**9
    assert tokens.find(SECRET) is None


def test_devices_are_globs_and_one_device_is_not() -> None:
    """Upper and lower case differ; a glob counts for the whole id; a device is no glob."""
    some = Identity(TokenEntry("n", "", devices=("green-*", "x?")))
    assert some.allows
    told = [some.allows(each) for each in ("green-7", "xy", "Green-7", "agreen-7", "xyz", "x\ny")]
    assert told == [True, True, False, False, False, False]
    one = Identity(TokenEntry("n", "", device="a*"))
    assert one.allows
    assert one.allows("a*")
    assert not one.allows("ab")
    assert not one.allows("a*\n")
    assert Identity(TokenEntry("n", "")).allows is None


def test_random_devices_and_wrong_tokens_fill_no_memory() -> None:
    """A client may send a new device id, or a new token, with each post."""
    some = Identity(TokenEntry("n", "", devices=("green-*",)))
    tokens = in_force(line())

    def use() -> Iterator[bool]:
        assert some.allows
        for at in range(3 * DEVICES_KNOWN_MAX):
            yield some.allows(f"device-{at}") or tokens.find(f"iot_{at}") is not None

    assert not any(use())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert not any(use())
        assert tracemalloc.get_traced_memory()[0] - before < 500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("access", "loopback", "tokens", "opens"),
    [
        ("auto", True, 0, True),
        ("auto", True, 1, False),
        ("auto", False, 1, False),
        ("token", True, 0, False),
        ("token", False, 0, False),
        ("open", False, 5, True),
    ],
)
def test_rule_of_access(access: str, *, loopback: bool, tokens: int, opens: bool) -> None:
    """`auto` is open on the loopback without tokens, and nowhere else."""
    found = is_open(access, private=loopback, tokens=tokens, address="a:1", run="./run")
    assert found is opens


def test_rule_refuses_to_start_where_nobody_could_post() -> None:
    """The text names the two ways out."""
    with pytest.raises(StartError, match=r"\./run token new NAME.*--access open"):
        is_open("auto", private=False, tokens=0, address="0.0.0.0:8080", run="./run")


DIGEST = digest_of(SECRET)


def test_new_tokens_are_long_and_differ() -> None:
    """32 random bytes; only letters, digits, - and _, which every client can send."""
    first, second = new_secret(), new_secret()
    assert first != second
    assert re.fullmatch(r"iot_[A-Za-z0-9_-]{43}", first)


def test_line_of_a_token_is_read_back() -> None:
    """What is written is read; fields without a value are left out; the token is in no line."""
    entry = TokenEntry(
        "a", DIGEST, ("x-*",), "", ("readings",), ("json",), 1_800_000_000_000_000, "n"
    )
    written = entry_line(entry)
    assert entries_of(written).by_digest == {DIGEST: entry}
    assert SECRET.encode() not in written
    assert json.loads(entry_line(TokenEntry("a", DIGEST))) == {"name": "a", "sha256": DIGEST}


def test_line_of_a_certificate_and_limits_are_read_back() -> None:
    """A name stands in the place of the digest, also in the line of its end; 0 is a limit, too."""
    entry = TokenEntry(
        "a",
        certificate_key("boiler 7.example"),
        readings_per_s_max=2.5,
        posts_per_s_max=0,
        connections_max=3,
    )
    assert entry.certificate == "boiler 7.example"
    written = json.loads(entry_line(entry))
    assert written == {
        "name": "a",
        "certificate": "boiler 7.example",
        "readings_per_s_max": 2.5,
        "posts_per_s_max": 0,
        "connections_max": 3,
    }
    assert entries_of(entry_line(entry)).by_digest == {entry.digest: entry}
    ended = entries_of(entry_line(entry), end_line(entry, 1_000_000))
    assert ended.by_digest[entry.digest].ends_us == 1_000_000
    assert not TokenEntry("a", DIGEST).certificate


def test_end_counts_before_and_after_the_token_and_the_earlier_one_counts() -> None:
    """Files may be put together in any order: a token that was disabled stays so."""
    token = TokenEntry("garden", DIGEST)
    late, early = end_line(token, 2_000_000), end_line(token, 1_000_000)
    for lines in ((line(), late, early), (early, line(), late), (late, early, line(), line())):
        assert entries_of(*lines).by_digest[DIGEST].ends_us == 1_000_000
    assert entries_of(line(), line(OTHER), end(OTHER)).by_digest[DIGEST].ends_us == NEVER_US


def test_later_line_of_a_digest_counts() -> None:
    """So that a scope is changed by a line at the end of the file."""
    found = entries_of(line(devices=("a",)), line(devices=("b",))).by_digest
    assert [each.devices for each in found.values()] == [("b",)]


def test_empty_lines_and_comments_are_skipped() -> None:
    """People write such files too. The last line may lack its end."""
    assert len(entries_of(b"# tokens\n\n  \r\n", line().rstrip()).by_digest) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"name":"a","sha256":"zz"}', "64 hexadecimal"),
        ('{"name":"a"}', "`sha256`"),
        ('{"sha256":"' + DIGEST + '"}', "`name`"),
        ('{"name":"a b","sha256":"' + DIGEST + '"}', "name of a token"),
        ('{"name":7,"sha256":"' + DIGEST + '"}', "name of a token"),
        ('{"name":"a","sha256":"' + DIGEST.upper() + '"}', "hexadecimal"),
        ('{"name":"a","sha256":"' + DIGEST + '","device":""}', "`device`"),
        ('{"name":"a","sha256":"' + DIGEST + '","devices":[]}', "no limit"),
        ('{"name":"a","sha256":"' + DIGEST + '","devices":"x"}', "list"),
        ('{"name":"a","sha256":"' + DIGEST + '","devices":["x"],"device":"y"}', "one of them"),
        ('{"name":"a","sha256":"' + DIGEST + '","expires":"tomorrow"}', "`expires`"),
        ('{"name":"a","sha256":"' + DIGEST + '","expires":"2027-01-01T00:00:00"}', "`expires`"),
        ('{"name":"a","sha256":"' + DIGEST + '","expires":"9999-12-31T23:00-01:00"}', "`expires`"),
        ('{"name":"a","sha256":"' + DIGEST + '","rate":5}', "not known"),
        ('{"name":"a","sha256":"' + DIGEST + '","posts_per_s_max":-1}', "`posts_per_s_max`"),
        ('{"name":"a","sha256":"' + DIGEST + '","posts_per_s_max":"5"}', "`posts_per_s_max`"),
        ('{"name":"a","sha256":"' + DIGEST + '","readings_per_s_max":true}', "a number from 0"),
        ('{"name":"a","sha256":"' + DIGEST + '","readings_per_s_max":1e10}', "a number from 0"),
        ('{"name":"a","sha256":"' + DIGEST + '","connections_max":1.5}', "a whole number"),
        ('{"name":"a","sha256":"' + DIGEST + '","admin":"read","connections_max":1}', "`admin`"),
        ('{"name":"a","sha256":"' + DIGEST + '","certificate":"c"}', "either `sha256`"),
        ('{"name":"a","certificate":"c","admin":"read"}', "reads no certificate"),
        ('{"name":"a","certificate":""}', "CN"),
        ('{"name":"a","certificate":"CN=c"}', "CN"),
        ('{"name":"a","certificate":"c,d"}', "CN"),
        ('{"name":"a","certificate":"c "}', "CN"),
        ('{"name":"a","certificate":7}', "CN"),
        ('{"end":"certificate:"}', "CN"),
        ('{"end":"' + DIGEST + '","at":5}', "`at`"),
        ('{"end":"' + DIGEST[:-1] + '"}', "hexadecimal"),
        ("[]", "object"),
        ('{"name":"a', "cut off"),
        (SECRET, "not JSON"),
        ("\udcff", "not JSON"),
        ("x" * 17_000, "longer"),
    ],
)
def test_wrong_line_is_refused_by_its_number(text: str, why: str) -> None:
    """Nothing is guessed: a limit that is not understood is no limit. The text has no secret."""
    with pytest.raises(ValueError, match=r"line 2: .*" + re.escape(why)) as raised:
        entries_of(b"# one\n", text.encode("utf-8", "surrogateescape"))
    assert SECRET not in str(raised.value)
