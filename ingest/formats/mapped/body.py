"""A post of a mapped source: from its body to blocks of its readings, and errors for its documents.

A document with a fault is one error. Its good readings are kept, and its original bytes become a
dead letter, which is read again by the mapping that is in force then. Of a large document only the
rows with a fault are in the letter. What came beside the body is the letter's context, a text of
JSON: it has no token, and of the headers only those that the mapping names.
Promises: a step is short (a few milliseconds), whatever the body has. What is kept besides the body
is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import orjson

from ingest.formats.block_builder import BlockBuilder
from ingest.formats.mapped.documents import Documents, Unreadable, documents
from ingest.formats.mapped.paths import ROOTS
from ingest.formats.mapped.rows import DocumentRead, DocumentReader, Hints, RowRead
from ingest.formats.mapped.source import Source
from ingest.formats.post import (
    Decoded,
    ItemError,
    Points,
    Post,
    finished,
    received_at,
    too_many_invalid,
    too_many_of_post,
)
from ingest.model.block import PG_EPOCH_US

STEP_DOCUMENTS = 32
STEP_ROWS = 1_000
HINTED_MAX = 100  # documents of a post that are looked at for hints
PRUNED_BYTES_MIN = 8 * 1024  # of a document; the rows without a fault are left out of its letter
ITEM_ROWS_BYTES_MAX = 256 * 1024 * 1024
CONTEXT_BYTES_MAX = 16 * 1024


class MapPost(NamedTuple):
    """What all documents of a post have in common.

    `roots` has what came beside the body, by the names of paths.ROOTS. A block has at most
    `post.rules.post_rows_max` rows. All blocks have at most `rows_max` rows and faults, and
    `rows_bytes_max` bytes with the documents that have a fault. For `times_us` see `received_at`,
    for `is_json` `documents`.
    """

    post: Post
    source: Source
    roots: Mapping[str, Any]
    rows_max: int
    rows_bytes_max: int
    times_us: Sequence[int] = ()
    is_json: bool = False


MapSteps = Generator[None, None, Points]


def begin(body: bytes, post: MapPost) -> Points | MapSteps:
    """Return the readings of a body, or the steps to them.

    `begin` and the steps raise Refused: `not_json`, `too_many_readings`, `item_too_large`,
    `body_too_large`, and `invalid_items` if there is nothing but very many faults.
    """
    steps = _PostReader(post, len(body)).read(body)
    try:
        next(steps)
    except StopIteration as end:
        return cast("Points", end.value)
    return steps


def decode(body: bytes, post: MapPost) -> Points:
    """Do what `begin` does, in one go."""
    return finished(begin(body, post))


def decode_item(
    original: bytes,
    source: Source,
    roots: Mapping[str, Any],
    post: Post,
    *,
    is_json: bool = False,
) -> Decoded:
    """Decode a document to one block; `post.rules.post_rows_max` must be large enough.

    `is_json`: it came as JSON, so it is no form, also if it looks like one. Raises Refused, also if
    the mapping leaves it out.
    """
    rows_max = post.rules.post_rows_max
    if original.lstrip()[:1] == b"[":  # a document that is a list; alone it would be a list of them
        original = b"[%b]" % original
    whole = MapPost(post, source, roots, rows_max, ITEM_ROWS_BYTES_MAX, is_json=is_json)
    points = decode(original, whole)
    return points.of_item(len(original), f"the mapping {source.name} leaves this document out")


class _PostReader:
    """What has been read of one post."""

    def __init__(self, post: MapPost, body_bytes: int) -> None:
        self._post = post
        self._items = 0  # documents that were read
        self._built = BlockBuilder(post.post, body_bytes)
        self._rounded = 0
        self._ignored = 0
        self._hints = Hints(post.source)
        self._body_bytes = body_bytes
        # Fewer than bytes, but for values that several rows share. Each reading is two parts.
        self._parts_left = body_bytes + 2 * post.rows_max

    def read(self, body: bytes) -> MapSteps:
        """Read all documents of a body."""
        for some in documents(body, self._post.rows_max, is_json=self._post.is_json):
            if some is None:
                yield
            else:
                yield from self._read_some(some)
        if not self._items:
            self._ignored += 1  # an empty body, or an empty list
        return self._built.points()._replace(
            rounded=self._rounded, ignored=self._ignored, hints=tuple(self._hints.told())
        )

    def _read_some(self, some: Documents) -> Generator[None, None, None]:
        originals: list[bytes] | None = None
        for at, document in enumerate(some.parsed):
            if self._items and not self._items % STEP_DOCUMENTS:
                yield
            if isinstance(document, Unreadable):
                found = DocumentRead()
                found.fault(None, document.code, document.why)
            else:
                post = self._post
                roots = post.roots if "form" in post.roots else {**post.roots, "form": document}
                reader = DocumentReader(
                    document,
                    post.source,
                    roots,
                    post.post,
                    received_us=received_at(post.times_us, self._items, post.post.received_us),
                    readings_max=post.rows_max,
                    parts_max=self._parts_left,
                    hints=self._hints if self._items < HINTED_MAX else None,
                )
                yield from reader.read()
                found = reader.found
                self._parts_left -= found.parts
                yield from self._keep(found.rows)
            self._rounded += found.rounded
            self._ignored += found.ignored
            if found.fault_count:
                originals = some.originals() if originals is None else originals
                self._note(found, document, originals[at])
            elif not found.readings and not found.ignored:
                self._ignored += 1
            self._items += 1
            self._check()

    def _note(self, found: DocumentRead, document: Any, original: bytes) -> None:
        """Keep a document with a fault, if it is not one too many."""
        if self._built.is_full_of_errors:
            if not self._built.rows:
                raise too_many_invalid(self._built.errors, self._body_bytes)
            self._built.not_kept += 1
            return
        if len(original) > PRUNED_BYTES_MIN:
            original = _pruned(found, document, self._post.source) or original
        (field, code, message), *others = found.faults
        also = tuple((field, code) for field, code, _ in others)
        self._built.fault(ItemError(self._items, field, code, message, original, also))

    def _keep(self, rows: list[RowRead]) -> Generator[None, None, None]:
        """Add the readings of a document."""
        for count, row in enumerate(rows):
            if count and not count % STEP_DOCUMENTS:
                yield
                self._check()
            for at in range(0, len(row.names), STEP_ROWS):
                if at:
                    yield
                    self._check()
                names, values = row.names[at : at + STEP_ROWS], row.values[at : at + STEP_ROWS]
                times_pg_us = [row.ts_us - PG_EPOCH_US] * len(names)
                self._built.add(times_pg_us, names, values, [self._items] * len(names), row.ts_us)

    def _check(self) -> None:
        """Raise Refused if there is more than allowed."""
        post = self._post
        if self._built.rows + self._built.faults > post.rows_max:
            raise too_many_of_post(post.rows_max)
        self._built.check_bytes(post.rows_bytes_max)


def _pruned(found: DocumentRead, document: Any, source: Source) -> bytes | None:
    """Return a document with only the rows that have a fault; None if that cannot be."""
    rows = source.rows
    if rows is None or rows.parts is None or not 0 < len(found.bad_rows) < found.row_count:
        return None
    if rows.parts and not isinstance(document, dict):
        return None
    top = copy = dict(document) if rows.parts else None
    parent: Any = document
    for name in rows.parts[:-1]:
        parent = parent[name]
        if not isinstance(parent, dict) or copy is None:
            return None
        copy[name] = copy = dict(parent)
    every = parent[rows.parts[-1]] if rows.parts else document
    if rows.each == "object":
        kept: Any = {key: every[key] for key in found.bad_rows}
    else:
        kept = [every[key] for key in found.bad_rows]
    if copy is None:
        top = kept
    else:
        copy[rows.parts[-1]] = kept
    try:
        text = orjson.dumps(top)
        if b"null" in text:
            json.dumps(top, allow_nan=False)  # an infinite number would become null, without fault
    except (TypeError, ValueError, RecursionError):
        return None
    return text


def context_of(roots: dict[str, Any]) -> str:
    """Return the context of a letter; if it is too long nothing, and a replay finds nothing."""
    kept = {name: each for name, each in roots.items() if each}
    try:
        text = orjson.dumps(kept) if kept else b""
    except TypeError:  # half of a surrogate pair, from a header that is not UTF-8
        text = json.dumps(kept).encode()
    return text.decode() if len(text) <= CONTEXT_BYTES_MAX else ""


def roots_of(context: str) -> dict[str, Any]:
    """Return what a text of `context_of` says; somebody may have edited it."""
    try:
        roots = json.loads(context or "{}")  # it reads half surrogate pairs, too
    except (ValueError, RecursionError):
        return {}
    return {name: roots[name] for name in ROOTS if name in roots} if type(roots) is dict else {}
