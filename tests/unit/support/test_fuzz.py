"""The targets of fuzz.py under Hypothesis: random bytes, and valid ones with bytes altered."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fuzz import INFLATED_MAX, TARGETS, seeds

SEEDS = seeds()
EXPECTED = {
    "gunzip": {"whole", "bad_encoding", "inflated_too_large"},
    "journal": {"0 frames", "1 frames", "2 frames"},
    "letters": {"letter", "refused"},
}
changes = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.integers(0, 3), st.binary(max_size=4)), max_size=4
)


def altered(data: bytes, how: list[tuple[int, int, bytes]]) -> bytes:
    """Replace some bytes by others at random places."""
    for place, removed, new in how:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + removed :]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_rule_holds_for_any_bytes_and_for_altered_valid_ones(name: str) -> None:
    """The rule holds, and the inputs reach each possible outcome."""
    target = TARGETS[name]
    came = {target(seed) for seed in SEEDS[name]}
    if name == "gunzip":
        came.add(target(gzip.compress(bytes(INFLATED_MAX + 1))))

    @settings(max_examples=400)
    @given(st.sampled_from(SEEDS[name]), changes)
    def valid_ones_altered(seed: bytes, how: list[tuple[int, int, bytes]]) -> None:
        came.add(target(altered(seed, how)))

    @settings(max_examples=100)
    @given(st.binary(max_size=200))
    def any_bytes(data: bytes) -> None:
        came.add(target(data))

    valid_ones_altered()
    any_bytes()
    assert came >= EXPECTED[name]
