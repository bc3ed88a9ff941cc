"""What a body of line protocol costs: its steps are short, and their number is bounded.

The bounds are multiples of what a body of good lines costs in the same run: machines differ.
"""

from __future__ import annotations

from functools import partial

import pytest

from ingest.formats.lines.body import LinePost, begin
from ingest.formats.lines.keys import Naming
from ingest.formats.post import Post
from tests.support.decode_cost import Cost, least_cost
from tests.support.posts import NOW_US, RULES

STEP_MAX = 9  # longest steps of good lines (0.7 ms on 2 cores of 2026); measured are up to 5.5
BODY_MAX = 75  # bodies of good lines of the same size; measured are up to 55
SIZE = 600_000
LONG = 120_000  # of one line
POST = LinePost(Post(None, False, NOW_US, 7.0, RULES), Naming(("host",)), 100_000, 1 << 24)


def repeated(line: bytes, size: int = SIZE) -> bytes:
    """Return a line so often that it has this size."""
    return line * (size // len(line))


HOSTILE: dict[str, bytes] = {
    "good lines": repeated(b"temperature,host=h value=21.5 1795600000\n"),
    "new series": b"".join(b"m%d,host=h%d value=1 1795600000\n" % (i, i) for i in range(15_000)),
    "new devices": b"".join(b"m,host=h%d v=1\n" % i for i in range(40_000)),
    "new tails": b"".join(b"m,a=%d,host=h v=1\n" % i for i in range(30_000)),
    "new faulty": b"".join(b"m,host=i%d v=nan\n" % i for i in range(30_000)),
    "new fields": b"m,host=h " + b",".join(b"f%d=1" % i for i in range(13_000)),
    "many fields": b"m,host=h " + repeated(b"f=1,", LONG) + b"f=1",
    "many faulty fields": b"m,host=h " + repeated(b"f=x,", LONG) + b"f=1",
    "many texts": b"m,host=h " + repeated(b'f="",', LONG) + b"f=1",
    "many tags": b"m,host=h" + repeated(b",a=1", LONG) + b" f=1",
    "long measurement": b"m" * LONG + b",host=h " + b"f=1,f=2,f=3",
    "long field": b"m,host=h " + b"f" * LONG + b"=1",
    "commas": b"m" + b"," * LONG + b" f=1",
    "field commas": b"m " + b"," * LONG,
    "equals": b"m," + b"=" * LONG + b" f=" + b"=" * 1_000,
    "backslashes": b"\\" * LONG,
    "escaped quotes": b'm,host=h a="' + b'\\"' * (LONG // 2),
    "lines of quotes": repeated(b'm,host=h a="\n'),
    "texts only": repeated(b'm,host=h a=""\n'),
    "empty lines": repeated(b"\n", 4_000_000),
    "comments": repeated(b"#\n", 4_000_000),
    "spaces": repeated(b"  \n", 4_000_000),
    "bad lines": repeated(b"a\n"),
    "bad values": repeated(b"m,host=h a=nan\n"),
    "half bad": repeated(b"m,host=h a=1,b=nan\n"),
    "mixed": repeated(b'm,host=h a=1\nm,host=h a=1 1795600000\n#\nm,host=h a=1,b=""\n'),
    "escapes": repeated(b"m\\ m,host=h a=1 1795600000\n"),
    "escaped field": repeated(b"m,host=h " + b"\\," * (LONG // 2) + b"=1 1795600000\n"),
    "escaped fields": repeated(b"m,host=h " + (b"\\," * 500 + b"=1,") * 98 + b"a=1\n"),
    "escaped key": repeated(b"m" + b"\\," * 1_900 + b",host=h v=1 1795600000\n"),
    "escaped tags": b"".join(
        b"m,host=h%d" % i + b",\\,=1" * 400 + b" v=1 1795600000\n" for i in range(250)
    ),
    "backslashes in a tag": b"".join(
        b"m,host=h,t=%d" % i + b"\\" * 3_800 + b" v=1 1795600000\n" for i in range(150)
    ),
    "open strings": repeated(b'm,host=h a="\n",b=1\n' * 30 + b"m,host=h a\\,b=1\n" * 3_000, SIZE),
    "long numbers": repeated(b"m,host=h a=" + b"1" * 390 + b"\n"),
    "large integers": repeated(b"m,host=h a=9007199254740993i\n"),
    "long times": repeated(b"m,host=h a=1 " + b"1" * 39 + b"\n"),
}


@pytest.fixture(scope="module")
def good() -> Cost:
    """Both costs of a good body."""
    return least_cost(partial(begin, HOSTILE["good lines"], POST), 6)


@pytest.mark.parametrize("name", HOSTILE)
def test_body_takes_short_steps_and_a_bounded_time(name: str, good: Cost) -> None:
    """Whatever lines, names, texts and faults it has."""
    most = Cost(BODY_MAX * good.total_s, STEP_MAX * good.step_s)
    found = least_cost(partial(begin, HOSTILE[name], POST), 20, most)
    assert found.step_s <= most.step_s
    assert found.total_s <= most.total_s
