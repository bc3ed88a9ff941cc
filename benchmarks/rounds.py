"""Rounds of pytest-benchmark on data that no round had before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pytest_benchmark.fixture import BenchmarkFixture

_T = TypeVar("_T")


def run_rounds(
    benchmark: BenchmarkFixture,
    run: Callable[[_T], object],
    make: Callable[[], _T],
    rounds: int,
    warmup_rounds: int = 0,
) -> int:
    """Measure `run` on what `make` returns; return the number of rounds, with those to warm up."""
    count = 0

    def prepare() -> tuple[tuple[_T], dict[str, object]]:
        nonlocal count
        count += 1
        return (make(),), {}

    benchmark.pedantic(  # type: ignore[no-untyped-call]
        run, setup=prepare, rounds=rounds, warmup_rounds=warmup_rounds
    )
    return count
