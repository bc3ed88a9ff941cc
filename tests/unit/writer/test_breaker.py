"""The circuit breaker: when many refused rows are a client's fault, and when they are ours."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.model.block import Block, Refusal
from ingest.model.causes import Verdict, WriteFailed
from ingest.system.clock import monotonic_s
from ingest.writer.database_state import WINDOW_POSTS_MIN, CircuitBreaker
from tests.support.examples import examples

WINDOW, ROWS_MAX = 1_000, 200
LAST = Refusal(0, "23514", "check")
Post = tuple[int, int, str]  # rows, refused rows, sender


def make_breaker() -> CircuitBreaker:
    """Make a breaker with the service's own numbers."""
    return CircuitBreaker(window_rows=WINDOW, rows_max=ROWS_MAX)


def fleet(posts: int, *, rows: int = 1, refused: int = 0, senders: int = 50) -> list[Post]:
    """Give posts of many senders, all alike."""
    return [(rows, refused, f"10.0.0.{number % senders}") for number in range(posts)]


def blocks_of(posts: Sequence[Post], received_s: float) -> list[Block]:
    """Give their blocks. The breaker never looks at the rows."""
    return [
        Block(b"", rows, received_s=received_s, received_us=0, newest_ts_us=0, sender=sender)
        for rows, _, sender in posts
    ]


Refused = dict[int, list[Refusal]]  # by the block's index


def judged(breaker: CircuitBreaker, posts: Sequence[Post], *, received_s: float = 1.0) -> bool:
    """Whether a batch may be isolated; if so it is remembered as written."""
    refused = {
        index: [Refusal(0, "23514", "check")] * bad
        for index, (_, bad, _) in enumerate(posts)
        if bad
    }
    return isolated(breaker, blocks_of(posts, received_s), refused)


def isolated(breaker: CircuitBreaker, blocks: Sequence[Block], refused: Refused) -> bool:
    """Whether these blocks may be isolated; if so they are remembered as written."""
    try:
        if refused:
            breaker.judge(blocks, refused, LAST)
    except WriteFailed:
        return False
    breaker.written(blocks, refused)
    return True


def shared(
    posts: Sequence[Post], sizes: Sequence[int], *, reloaded: bool = False
) -> tuple[list[Block], Refused]:
    """Give the blocks of posts that share them, so many in each; the last rows are refused.

    `reloaded`: as they are read back from the journal.
    """
    blocks: list[Block] = []
    refused: Refused = {}
    left = list(posts)
    for size in [*sizes, len(left)]:
        some, left = left[:size], left[size:]
        if not some:
            continue
        block, *others = blocks_of(some, 1.0)
        for other in others:
            block.add(other)
        block.seal()
        end, bad = 0, []
        for rows, count, _ in some:
            end += rows
            bad += [Refusal(row, "23514", "check") for row in range(end - count, end)]
        if bad:
            refused[len(blocks)] = bad
        if reloaded:
            block.parts, block.sender, block.reloaded = None, "", True
        blocks.append(block)
    return blocks, refused


def test_breaker_says_hold_and_why() -> None:
    """The reason is `breaker`. The message has the numbers and the database's last refusal."""
    posts = fleet(300, refused=1)
    refused = {index: [Refusal(0, "23514", "check")] for index in range(300)}
    with pytest.raises(WriteFailed, match=r"201 of 201 rows .* 201 of 201 posts.*: check") as it:
        make_breaker().judge(blocks_of(posts, 0.0), refused, LAST)
    assert it.value.verdict is Verdict.HOLD
    assert (it.value.reason, it.value.sqlstate, it.value.doubtful) == ("breaker", "23514", False)


def test_one_post_never_trips_whatever_it_has_and_ten_do_not() -> None:
    """The names of devices are the client's to choose, and so is the number of rows."""
    breaker = make_breaker()
    for _ in range(10):
        assert judged(breaker, [(5_000, 5_000, "10.9.9.9")])
    assert not judged(breaker, [(5_000, 5_000, "10.9.9.9")])
    breaker = make_breaker()
    assert judged(breaker, fleet(100))
    assert judged(breaker, [(300, 300, "10.9.9.9")])


def test_posts_of_unknown_senders_count_as_addresses_of_their_own() -> None:
    """Good posts of before an outage, read from the journal, do not make one address a half."""
    good = [(1, 0, "")] * 700
    assert judged(make_breaker(), good + [(1, 1, "10.9.9.9")] * 300)
    assert judged(make_breaker(), fleet(850) + [(1, 1, "")] * 150)
    assert not judged(make_breaker(), good + [(1, 1, "")] * 300)


def test_release_with_dead_letters_is_for_what_was_received_before() -> None:
    """It covers all that waits now, however much is written meanwhile, and no more."""
    breaker = make_breaker()
    breaker.release(received_until_s=2.0)
    assert judged(breaker, fleet(300, refused=1), received_s=1.0)
    assert judged(breaker, fleet(10_000))
    assert judged(breaker, fleet(300, refused=1), received_s=2.0)
    breaker.forget()
    assert not judged(breaker, fleet(300, refused=1), received_s=2.1)


def test_worst_batch_does_not_stop_the_loop_and_little_is_remembered() -> None:
    """20,000 posts, half of them refused rows of one address."""
    breaker = make_breaker()
    posts = [
        (1, 1, "10.9.9.9") if number % 2 else post for number, post in enumerate(fleet(20_000))
    ]
    began_s = monotonic_s()
    assert judged(breaker, posts)
    assert monotonic_s() - began_s < 3.0
    assert len(breaker._past) == WINDOW


posts_of_batches = st.lists(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(0, 40), st.sampled_from("abcdefg")),
        min_size=1,
        max_size=40,
    ),
    max_size=5,
)


@examples(150)
@given(posts_of_batches)
def test_verdict_is_that_of_the_rule_taken_literally(batches: list[list[Post]]) -> None:
    """Each window is the fewest last posts that have enough rows and are enough posts."""
    window_rows, rows_max = 60, 4
    breaker = CircuitBreaker(window_rows=window_rows, rows_max=rows_max)
    past: list[Post] = []
    for drawn in batches:
        batch = [(rows, min(rows, refused), sender) for rows, refused, sender in drawn]
        first = next((at for at, post in enumerate(batch) if post[1]), len(batch))
        trips = False
        for end in range(first, len(batch)):
            seen: list[Post] = []
            for post in reversed([*past, *batch[: end + 1]]):
                if len(seen) >= WINDOW_POSTS_MIN and sum(p[0] for p in seen) >= window_rows:
                    break
                seen.append(post)
            bad = [post for post in seen if post[1]]
            rows = max(window_rows, sum(post[0] for post in seen))
            trips |= (
                sum(post[1] for post in bad) / rows > rows_max / window_rows
                and len(bad) / max(len(seen), WINDOW_POSTS_MIN) > 0.2
                and len({post[2] for post in bad}) / len({post[2] for post in seen}) > 0.2
            )
        assert judged(breaker, batch) is not trips
        if not trips:
            past += batch


@examples(150)
@given(posts_of_batches, st.lists(st.integers(1, 30), max_size=30))
def test_posts_that_share_blocks_have_the_votes_of_posts_with_their_own(
    batches: list[list[Post]], sizes: list[int]
) -> None:
    """However they come together: rows, refused rows and sender of each post count."""
    alone, together = (CircuitBreaker(window_rows=60, rows_max=4) for _ in range(2))
    for drawn in batches:
        batch = [(rows, min(rows, refused), sender) for rows, refused, sender in drawn]
        blocks, refused = shared(batch, sizes)
        assert isolated(together, blocks, refused) is judged(alone, batch)
        assert together._past == alone._past


@pytest.mark.parametrize("reloaded", [False, True], ids=["live", "reloaded"])
def test_bad_stretch_of_one_block_trips_only_if_it_is_known(reloaded: bool) -> None:
    """The window moves over the posts of a block, one by one. Read back, none is like another."""
    posts = [*fleet(201, refused=1), *fleet(1_800)]
    blocks, refused = shared(posts, [], reloaded=reloaded)
    assert isolated(make_breaker(), blocks, refused) is reloaded


@pytest.mark.parametrize(("share", "trips"), [(20, False), (21, True)])
def test_share_of_refused_rows_is_that_of_blocks_that_were_read_back(
    share: int, trips: bool
) -> None:
    """The refused rows of a block are not taken for a bad stretch at its begin."""
    breaker = make_breaker()
    posts = [(1, int(number < share), "") for number in range(100)] * 30
    assert isolated(breaker, *shared(posts, [100] * 30, reloaded=True)) is not trips


def test_posts_read_back_as_one_block_have_as_many_votes_as_it_has_refused_rows() -> None:
    """At most one each. They share its rows, and count as senders of their own."""
    for refused_rows, votes in ((0, 0), (1, 1), (3, 3), (4, 4), (9, 4)):
        breaker = make_breaker()
        blocks, refused = shared([(3, 0, "10.0.0.1")] * 4, [], reloaded=True)
        if refused_rows:
            refused[0] = [Refusal(row, "23514", "check") for row in range(refused_rows)]
        assert isolated(breaker, blocks, refused)
        past = list(breaker._past)
        assert [rows for rows, _, _ in past] == [3] * 4
        assert sum(bad for _, bad, _ in past) == refused_rows
        assert sum(bad > 0 for _, bad, _ in past) == votes
        assert {sender for _, _, sender in past} == {""}
    breaker = make_breaker()
    breaker.written(shared([(2, 0, "x"), (2, 0, "x"), (3, 0, "x")], [], reloaded=True)[0])
    assert [rows for rows, _, _ in breaker._past] == [2, 2, 3]


def test_little_is_remembered_of_large_blocks() -> None:
    """As much as of as many small ones: a thousand posts."""
    breaker = make_breaker()
    assert isolated(breaker, *shared(fleet(5_000), [300] * 20))
    assert len(breaker._past) == WINDOW
    assert isolated(breaker, *shared(fleet(5_000, rows=2, refused=0), [150] * 40, reloaded=True))
    assert len(breaker._past) == WINDOW


@pytest.mark.parametrize("sizes", [[1] * 80, []], ids=["each its block", "one block"])
def test_good_posts_never_trip_whatever_the_window_drops_for_them(sizes: list[int]) -> None:
    """A large good post leaves the window, and what it hid is too much: nobody is judged for it."""
    breaker = CircuitBreaker(window_rows=60, rows_max=4)
    past = [(1_000, 0, "x"), *fleet(20, refused=1), *fleet(30)]
    assert isolated(breaker, *shared(past, [1] * len(past)))
    good = [(10, 0, f"10.0.0.{number}") for number in range(70)]
    assert isolated(breaker, *shared([*good, (1, 1, "x")], sizes))
