"""Reads line protocol as the service does, and as the oracle does, in one form for both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ingest.formats.lines import body as lines_body
from ingest.formats.lines.body import LinePost, decode
from ingest.formats.lines.keys import Naming
from ingest.formats.post import Points, Post
from ingest.model.errors import Refused
from ingest.model.moments import decode_readings
from tests.support import line_oracle
from tests.support.posts import NOW_US, RULES


@contextmanager
def cut_small(size_bytes: int) -> Iterator[None]:
    """Read bodies in slices of this size."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lines_body, "WHOLE_BYTES", -1)
        patched.setattr(lines_body, "SLICE_BYTES", size_bytes)
        patched.setattr(lines_body, "FEW_LINES", 2)
        patched.setattr(lines_body, "STEP_BYTES", 0)
        yield


def points_of(body: bytes, naming: Naming, precision: str | None = None) -> Points | str:
    """Return what a body has, or the code of its refusal."""
    post = Post(precision, False, NOW_US, 7.0, RULES._replace(post_rows_max=3))
    try:
        return decode(body, LinePost(post, naming, 10_000, 1_000_000))
    except Refused as refused:
        return refused.code


def told_of(points: Points | str) -> line_oracle.Told | str:
    """Return points in the form of the oracle."""
    if isinstance(points, str):
        return points
    return line_oracle.Told(
        [
            (each.ts_us, each.device_id, each.metric, each.value)
            for block in points.blocks
            for each in decode_readings(block.tuples)
        ],
        [(each.item, each.code, each.original) for each in points.errors],
        points.texts,
        points.rounded,
    )


def expected_of(body: bytes, naming: Naming, precision: str | None) -> line_oracle.Told | str:
    """Return what the oracle says of a body, or the code of the refusal."""
    latest_us = NOW_US + RULES.ts_ahead_us_max
    tags, device, prefix, escapes = naming
    rules = line_oracle.Rules(
        tags, device, prefix, precision, NOW_US, RULES.ts_min_us, latest_us, escapes
    )
    told = line_oracle.read(body, rules)
    if not (told.readings or told.errors or told.strings):
        return "empty"
    if not (told.readings or told.strings) and {each[1] for each in told.errors} == {
        "line_unreadable"
    }:
        return "not_lines"
    return told
