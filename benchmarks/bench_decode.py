"""What decoding and encoding a post costs, in microseconds: `python -m benchmarks.bench_decode`.

Each figure is the best of several runs, CPU time of one core; every reading has its own time.

Measured alone and lost, in us. A time, 0.15 as it is: one regular expression about 2, slices and
int() 0.36, tables of digits 0.22, `datetime.fromisoformat` less the epoch 0.27 (and it takes more
than RFC 3339). A row, 0.055 as it is: pack with six arguments instead of four 0.073.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

from ingest.decode import Rules, decode

RULES = Rules(5_000, 946_684_800_000_000, 86_400_000_000)
NOW_S = 1_795_600_000
REPEATS = 7


def _array(count: int, item: Callable[[int], str]) -> bytes:
    return f"[{','.join(item(i) for i in range(count))}]".encode()


def _flat(ts: str) -> str:
    return f'"metric":"temperature","ts":{ts},"value":'


def _text(i: int) -> str:
    ts = f'"2026-11-25T10:{i % 7 + 10}:{i % 60:02}.{i * 7_919 % 1_000_000:06}Z"'
    return f'{{"device_id":"sensor-{i % 200:04}",{_flat(ts)}{i / 8}}}'


def _offset(i: int) -> str:
    return _text(i).replace('Z"', '+02:00"')


def _millis(i: int) -> str:
    ts = f"{NOW_S - i}{i % 1000:03}"
    return f'{{"device_id":"sensor-{i % 200:04}",{_flat(ts)}{i / 8}}}'


def _values(i: int) -> str:
    pairs = ",".join(f'"metric_{m}":{i + m / 4}' for m in range(4))
    return f'{{"device_id":"sensor-{i % 200:04}","ts":{NOW_S - i},"values":{{{pairs}}}}}'


def _bad_at(place: int, item: Callable[[int], str]) -> Callable[[int], str]:
    return lambda i: item(i) if i != place else item(i).replace("T10", "X10")


def _unknown(i: int) -> str:
    return _text(i)[:-1] + ',"unit":"C"}'


POSTS: list[tuple[str, int, bytes]] = [
    ("1 of 1, text", 1, _text(3).encode()),
    ("1 of 1, ms", 1, _millis(3).encode()),
    ("100, text", 100, _array(100, _text)),
    ("100, text with offset", 100, _array(100, _offset)),
    ("100, ms", 100, _array(100, _millis)),
    ("5,000, text", 5_000, _array(5_000, _text)),
    ("25 x 4 values", 100, _array(25, _values)),
    ("100, one bad", 100, _array(100, _bad_at(70, _text))),
    ("100, unknown ignored", 100, _array(100, _unknown)),
    ("100, all bad", 100, _array(100, lambda i: _text(i).replace("metric", "metrik"))),
]


def _run(body: bytes, ignore_unknown: bool) -> None:
    decode(
        body,
        precision=None,
        ignore_unknown=ignore_unknown,
        received_us=NOW_S * 1_000_000,
        received_s=0.0,
        rules=RULES,
    )


def main() -> None:
    """Print one line for each kind of post."""
    print(f"{'post':<24}{'bytes':>8}{'us/post':>10}{'us/reading':>12}")
    for name, readings, body in POSTS:
        number = max(3, 20_000 // readings)
        seconds = timeit.repeat(
            lambda body=body, name=name: _run(body, "ignored" in name),  # type: ignore[misc]
            number=number,
            repeat=REPEATS,
            timer=time.process_time,
        )
        post_us = min(seconds) / number * 1e6
        print(f"{name:<24}{len(body):>8}{post_us:>10.1f}{post_us / readings:>12.3f}")


if __name__ == "__main__":
    main()
