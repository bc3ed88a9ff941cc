"""The tokens in force: who is found, what each may do, and how one is revoked."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from ingest.access.token_lines import TokenEntry
from ingest.access.tokens import DEVICES_KNOWN_MAX, Identity, is_open
from ingest.model.errors import StartError
from ingest.system.clock import unix_us
from tests.support.receiver import OTHER, SECRET, end, in_force, line, put


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
