"""The lines of a file of tokens: what is read, what is refused, what is written."""

from __future__ import annotations

import json
import re

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
from tests.support.receiver import OTHER, SECRET, end, entries_of, line

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
