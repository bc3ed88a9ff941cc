"""The cost of tokens: to find one, and to put a changed file in force.

pytest benchmarks/bench_access.py
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ingest.access.entries import Entries, TokenEntry, digest_of, entry_line, new_secret
from ingest.access.tokens import Tokens

COUNTS = (1, 10_000)


def made(count: int) -> tuple[str, bytes]:
    """Return a token, and the lines of it and of others."""
    token = new_secret()
    others = (
        TokenEntry(f"n{at}", digest_of(f"{at}"), devices=(f"d{at}-*",)) for at in range(count - 1)
    )
    return token, b"".join(map(entry_line, (*others, TokenEntry("last", digest_of(token)))))


def in_force(text: bytes) -> Tokens:
    """Return the tokens of these lines."""
    tokens = Tokens()
    put(tokens, text)
    return tokens


def put(tokens: Tokens, text: bytes) -> None:
    """Read the lines, and put them in force."""
    entries = Entries()
    for _ in entries.read(text):
        pass
    for _ in tokens.change(entries):
        pass


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("known", [True, False], ids=["right", "wrong"])
def test_find(benchmark: BenchmarkFixture, count: int, *, known: bool) -> None:
    """Once a head that is not known; a right token costs what a wrong one costs."""
    token, lines = made(count)
    tokens = in_force(lines)
    found = benchmark(tokens.find, token if known else new_secret())
    assert (found is not None) is known


@pytest.mark.parametrize("count", COUNTS)
def test_read_the_whole_file(benchmark: BenchmarkFixture, count: int) -> None:
    """All of it together; the service does it in slices."""
    token, lines = made(count)
    tokens = in_force(lines)
    benchmark(put, tokens, lines)
    assert tokens.find(token)
