"""Line protocol: from a body to blocks of its valid readings, and errors for the other lines.

A body is read in slices. fast.py reads most slices as a whole. Where it returns None, the
lines of the slice are read in halves, then one by one (careful.py).
Promises: a step is short (a few milliseconds), whatever the body has. What is kept besides the body
is not larger than the body and its rows, and these are bounded.
Does not: decide what the answer to a post is.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

from ingest.formats.block_builder import BlockBuilder
from ingest.formats.line_escapes import marked
from ingest.formats.lines.careful import (
    EMPTY,
    LINE_BYTES_MAX,
    STEP_BYTES,
    LineReader,
    line_too_large,
    next_line,
    stamp_us,
)
from ingest.formats.lines.fast import ONE_BYTES_MAX, Columns, TakenLines, many, one
from ingest.formats.lines.keys import KEPT_KEYS, UNREADABLE, Keys, Naming
from ingest.formats.lines.moments import PlacedLines, end_of_slice, place_lines
from ingest.formats.moments import each_of
from ingest.formats.post import Decoded, Points, Post, finished
from ingest.model.block import PG_EPOCH_US, Block
from ingest.model.errors import Refused

WHOLE_BYTES = 16 * 1024  # a body of this size is read in one step, if all its lines are plain
SLICE_BYTES = 32 * 1024
ITEM_ROWS_BYTES_MAX = 64 * 1024 * 1024  # of the lines of a dead letter
FEW_LINES = 8  # are read one by one if they cannot be read as a whole
LINE_BYTES = 64  # so many count for each of these in a step, besides its own
QUOTE = b'"'


class LinePost(NamedTuple):
    """What all lines of a post have in common.

    A block has at most `post.rules.post_rows_max` rows. All blocks have at most `rows_max` rows,
    faulty lines and strings, and `rows_bytes_max` bytes with the faulty lines.
    """

    post: Post
    naming: Naming
    rows_max: int
    rows_bytes_max: int


# Each `next` does a short step of the work; the result comes with StopIteration. Raises Refused.
LineSteps = Generator[None, None, Points]


def decode(body: bytes, post: LinePost) -> Points:
    """Do what `begin` does, in one go."""
    return finished(begin(body, post))


def decode_item(line: bytes, post: Post, naming: Naming) -> Decoded:
    """Decode a line, or some, to one block; all of it counts for `post_rows_max`.

    Raises Refused, also if there is no reading and no error.
    """
    rows_max = post.rules.post_rows_max
    points = decode(line, LinePost(post, naming, rows_max, ITEM_ROWS_BYTES_MAX))
    return points.of_item(len(line), "the line has no reading, only text")


def begin(body: bytes, post: LinePost) -> Points | LineSteps:
    """Return the points of a body, or the steps to them.

    `begin` and the steps raise Refused: `empty`, `not_lines`, `too_many_readings`,
    `item_too_large`, `body_too_large`.
    """
    if len(body) <= ONE_BYTES_MAX and (block := _one_reading(body, post)) is not None:
        return Points([block], [], 0, 0)
    reader = _BodyReader(post, len(body))
    if len(body) <= WHOLE_BYTES and body.find(QUOTE) < 0 and reader.is_kept(body):
        return reader.finish() if reader.is_behind else reader.points()
    return reader.read(body)


def _one_reading(body: bytes, line_post: LinePost) -> Block | None:
    """Return the block of a body with a single reading, if it is a plain one."""
    post = line_post.post
    read = one(body, KEPT_KEYS.of(line_post.naming, post.rules.tables), post)
    if read is None:
        return None
    ts_us, row = read
    if len(row) > line_post.rows_bytes_max:
        return None
    return Block(
        row, 1, received_s=post.received_s, received_us=post.received_us, newest_ts_us=ts_us
    )


def has_usable_time(line: bytes, precision: str | None, least_us: int, most_us: int) -> bool:
    """Whether a line, valid or not, has a time of its own between these."""
    ts_us = stamp_us(line.rpartition(b" ")[2], precision)
    return isinstance(ts_us, int) and least_us <= ts_us <= most_us


class _BodyReader:
    """What has been read of one post."""

    def __init__(self, post: LinePost, body_bytes: int) -> None:
        self._post = post
        self._lines = 0  # that were read, with those without content
        self._step_bytes = 0  # of lines read one by one in this step
        self._is_doubtful = False  # the last lines could not be read as a whole
        self._built = BlockBuilder(post.post, body_bytes)
        self._strings = 0
        self._rounded = 0

    def is_kept(self, text: bytes) -> bool:
        """Read lines without `"` all together. Returns False if that is not possible."""
        keys, post = self._keys(), self._post.post
        lines = many(marked(text, self._post.naming.escapes), keys, post)
        read = place_lines(lines, self._lines, post) if isinstance(lines, TakenLines) else lines
        if isinstance(lines, TakenLines) and read is not None and lines.new:
            keys.keep(lines.new)
        self._is_doubtful = read is None
        if read is not None:
            self._keep(read)
        return read is not None

    @property
    def is_behind(self) -> bool:
        """Whether some of what was read is encoded later."""
        return self._built.is_behind

    def _keys(self) -> Keys:
        return KEPT_KEYS.of(self._post.naming, self._post.post.rules.tables)

    def read(self, body: bytes) -> LineSteps:
        """Read a body in slices."""
        at = 0
        while at < len(body):
            stop = body.find(b"\n", at + SLICE_BYTES, at + LINE_BYTES_MAX + 1) + 1
            if not stop and len(body) - at <= LINE_BYTES_MAX:
                stop = len(body)
            elif not stop:
                stop = body.rfind(b"\n", at, at + SLICE_BYTES) + 1  # before a long line
                if not stop:
                    raise line_too_large()
            begin = self._after_empty(body, at, min(stop, at + SLICE_BYTES // 2))
            if begin > at:  # a slice of few lines would cost more than they do
                at = begin
                yield
                continue
            if self._post.post.rules.tables:
                stop = end_of_slice(body, at, stop)
            at = yield from self._slice(body, at, stop)
        return self.points()

    def finish(self) -> LineSteps:
        """Do what `points` does, in steps."""
        yield from self._built.place()
        return self.points()

    def points(self) -> Points:
        """Return everything that was read. Raises Refused if that is nothing."""
        points = self._built.points()
        if not (points.blocks or points.errors or self._strings):
            raise Refused("empty", "the body has no lines")
        self._check_readable()
        return points._replace(texts=self._strings, rounded=self._rounded)

    def _check_readable(self) -> None:
        """Raise Refused if no line was line protocol so far."""
        errors = self._built.errors
        if not (self._built.rows or self._strings) and all(
            each.code == UNREADABLE for each in errors
        ):
            raise Refused(
                "not_lines",
                f"no line of the body is line protocol; line {errors[0].item + 1}: "
                f"{errors[0].message}",
            )

    def _slice(self, body: bytes, at: int, stop: int) -> Generator[None, None, int]:
        """Read the lines that begin before `stop`; return where the last one ends."""
        while at < stop:
            quote = body.find(QUOTE, at, stop)
            if quote < 0:
                return (yield from self._plain(body, at, stop))
            start = body.rfind(b"\n", at, quote) + 1  # of the line that has it
            if start > at:
                at = yield from self._plain(body, at, start)
            else:
                at = yield from self._one(body, at)
        return at

    def _plain(self, body: bytes, at: int, stop: int) -> Generator[None, None, int]:
        """Read lines without `"` that begin before `stop`: all together, or in halves.

        Returns where the last one ends.
        """
        yield
        at = self._after_empty(body, at, stop)
        half = body.find(b"\n", (at + stop) // 2, stop - 1) + 1
        is_few = not half or body.count(b"\n", at, stop) <= FEW_LINES
        is_tried = stop - at <= 2 * SLICE_BYTES and (is_few or not self._is_doubtful)
        if is_tried and self.is_kept(body[at:stop]):
            yield from self._built.place()
            return stop
        if not is_few:
            at = yield from self._plain(body, at, half)
            return (yield from self._plain(body, at, stop))
        while at < stop:
            at = yield from self._one(body, at)
        return at

    def _after_empty(self, body: bytes, at: int, stop: int) -> int:
        """Return the place behind the lines without content that begin here."""
        empty = EMPTY.match(body, at, stop)
        if not empty:
            return at
        self._lines += body.count(b"\n", at, empty.end())
        return empty.end()

    def _one(self, body: bytes, at: int) -> Generator[None, None, int]:
        """Read the line at a place; return where it ends."""
        naming, start = self._post.naming, at
        line, at, self._lines = next_line(body, at, self._lines, naming.escapes)
        self._step_bytes += LINE_BYTES + at - start
        if self._step_bytes > STEP_BYTES:
            yield
            self._step_bytes = 0
        if line is None:
            return at
        read = yield from LineReader(line, self._keys(), self._post.post).read()
        self._strings += read.strings
        self._rounded += read.rounded
        if read.error is not None:
            if self._built.is_full_of_errors and not self._built.not_kept:
                self._check_readable()
            self._built.fault(read.error)
        rows = len(read.names)
        if rows:
            times_pg_us = [read.ts_us - PG_EPOCH_US] * rows
            self._built.add(times_pg_us, read.names, read.values, [line.number] * rows, read.ts_us)
            yield from self._built.place()
        self._check()
        return at

    def _keep(self, read: Columns | PlacedLines) -> None:
        """Add the rows of the next lines."""
        first = self._lines
        self._lines += read.lines
        if isinstance(read, PlacedLines):
            self._built.add_placed(read.tuples, read.owners, read.newest_us)
        else:
            owners: Sequence[int] = range(first, self._lines)
            if read.counts is not None:
                owners = [*each_of(owners, read.counts)]
            add = self._built.add if read.are_taken else self._built.add_plain
            add(read.times_pg_us, read.names, read.values, owners, read.newest_us)
        self._check()

    def _check(self) -> None:
        """Raise Refused if there is more than allowed."""
        post = self._post
        if self._built.rows + self._built.faults + self._strings > post.rows_max:
            raise Refused(
                "too_many_readings",
                f"a post may have {post.rows_max} fields; split it",
                readings_max=post.rows_max,
            )
        self._built.check_bytes(post.rows_bytes_max)
