"""The posts of a message: their readings, bodies and keys, and their signatures."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.config.origins import UnusableFile
from ingest.model.block import Block
from ingest.model.reading import Reading
from ingest.roles.forward.posts import Filters, ForwardPost, PostLimits, Signer, outgoing, signature
from tests.support.journals import block_of
from tests.support.posts import decoded, readings_of
from tests.support.rows import readings
from tests.support.webhook import message_of
from tests.unit.formats.json.test_any_body import NAMES, TIMES_US

WIDE = PostLimits(10_000, 1024**2)
READINGS = st.builds(
    Reading, TIMES_US, NAMES, NAMES, st.floats(allow_nan=False, allow_infinity=False)
)


def posts_of(
    block: Block, limits: PostLimits = WIDE, filters: Filters | None = None, sequence: int = 7
) -> list[ForwardPost]:
    """Return the posts of a block's message."""
    message = message_of(block, sequence)
    return list(outgoing(message, block.tuples, filters or Filters(), limits))


@given(st.lists(READINGS, min_size=1, max_size=30), st.integers(1, 10), st.integers(4096, 8192))
def test_posts_hold_each_reading_exactly_as_our_own_receiver_reads_it(
    those: list[Reading], rows_max: int, bytes_max: int
) -> None:
    """In order, within the bounds, whatever names, times and values there are."""
    posts = posts_of(block_of(those), PostLimits(rows_max, bytes_max))
    found = list[Reading]()
    for each in posts:
        assert len(each.readings) <= rows_max
        assert len(each.body) <= bytes_max
        block = decoded(each.body)
        assert block.errors == []
        assert readings_of(block) == list(each.readings)
        found += each.readings
    assert found == those
    assert [repr(each.value) for each in found] == [repr(each.value) for each in those]


def test_post_is_as_large_as_its_bound_allows_and_not_larger() -> None:
    """One byte less, and the last reading is in the next post."""
    block = block_of(readings(10))
    (whole,) = posts_of(block)
    size = len(whole.body)
    assert [len(each.readings) for each in posts_of(block, PostLimits(10, size))] == [10]
    assert [len(each.readings) for each in posts_of(block, PostLimits(10, size - 1))] == [9, 1]
    assert [len(each.readings) for each in posts_of(block, PostLimits(9, size))] == [9, 1]
    assert [len(each.readings) for each in posts_of(block, PostLimits(10, 5))] == [1] * 10


def test_keys_are_the_same_each_time_and_differ_for_whatever_differs() -> None:
    """Another message, another part, another filter, other readings: another key."""
    block = block_of(readings(10))
    keys = [each.key for each in posts_of(block, PostLimits(3, 10_000))]
    assert keys == [each.key for each in posts_of(block, PostLimits(3, 10_000))]
    assert len(set(keys)) == 4
    (whole,) = posts_of(block)
    (part,) = posts_of(block, filters=Filters(["device-1"]))
    (later,) = posts_of(block, sequence=8)
    others = [posts_of(block_of(readings(10, start=start)))[0].key for start in range(5)]
    assert len({whole.key, part.key, later.key, *others, *keys}) == 12
    assert later.body == whole.body


@pytest.mark.parametrize(
    ("devices", "metrics", "wanted"),
    [
        ((), (), {"a/1", "a/2", "B/1", "b*/1"}),
        (("a",), (), {"a/1", "a/2"}),
        (("a", "B"), ("1",), {"a/1", "B/1"}),
        (("b[*]",), (), {"b*/1"}),
        (("b*",), (), {"b*/1"}),
        (("?",), ("2",), {"a/2"}),
        (("[!a]",), (), {"B/1"}),
        (("",), (), set()),
        (("a/1",), (), set()),
    ],
)
def test_globs_choose_by_whole_names(
    devices: tuple[str, ...], metrics: tuple[str, ...], wanted: set[str]
) -> None:
    """Capitals count. Several globs of one kind: one must fit; of both kinds: both must."""
    filters = Filters(devices, metrics)
    names = [("a", "1"), ("a", "2"), ("B", "1"), ("b*", "1")]
    assert {f"{device}/{metric}" for device, metric in names if filters.wants(device, metric)} == (
        wanted
    )


def test_newlines_do_not_end_a_glob() -> None:
    """A name may have no line feed, but U+2028 is one for some."""
    assert Filters(["a*b"]).wants("a\u2028b", "x")


def test_body_is_json_of_a_post() -> None:
    """As the document shows it."""
    (post,) = posts_of(block_of([Reading(1_700_000_000_250_000, "boiler-7", "temp", 81.5)]))
    assert json.loads(post.body) == [
        {
            "ts": "2023-11-14T22:13:20.250000Z",
            "device_id": "boiler-7",
            "metric": "temp",
            "value": 81.5,
        }
    ]


SECRET = "not-a-very-good-secret"


def test_signature_is_that_of_the_specification() -> None:
    """With the example of the specification's own libraries: a known answer."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def signed_with(headers: dict[str, str], secret: bytes) -> bool:
    """Whether headers of ("k", b"body") were made with a secret."""
    content = f"k.{headers['webhook-timestamp']}.body".encode()
    digest = base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()
    return headers["webhook-signature"] == f"v1,{digest}"


def test_secret_is_read_again_when_its_file_has_changed(tmp_path: Path) -> None:
    """By a write, or by another file in its place; a bad one changes nothing."""
    file = tmp_path / "secret"
    file.write_text(f" {SECRET}\n")
    signer = Signer(file)
    assert signed_with(signer.headers("k", b"body", 1.5), SECRET.encode())
    assert signer.headers("k", b"body", 1.5)["webhook-timestamp"] == "1"
    key = b"sixteen bytes at"
    other = tmp_path / "other"
    other.write_text("whsec_" + base64.b64encode(key).decode())
    other.rename(file)
    assert signed_with(signer.headers("k", b"body", 2), key)
    for bad in ("", "short", "whsec_" + "?" * 30, "a" * 20 + "\n" + "b" * 20, "\0\xff" * 9_000):
        file.write_text(bad)
        assert signed_with(signer.headers("k", b"body", 3), key), bad
    file.unlink()
    assert signed_with(signer.headers("k", b"body", 4), key)
    os.mkfifo(file)  # nobody writes it: a read would wait for ever
    assert signed_with(signer.headers("k", b"body", 5), key)
    file.unlink()
    file.write_text(SECRET)
    assert signed_with(signer.headers("k", b"body", 6), SECRET.encode())


@pytest.mark.parametrize("bad", [None, "", "short", "whsec_" + "?" * 30])
def test_start_with_an_unusable_secret_says_why_without_it(bad: str | None, tmp_path: Path) -> None:
    """The name of the file helps; its content is nobody's business."""
    file = tmp_path / "secret"
    if bad is not None:
        file.write_text(bad)
    with pytest.raises(UnusableFile) as caught:
        Signer(file)
    assert str(file) in str(caught.value)
    assert not bad or bad not in str(caught.value)
