"""Counts refused posts, and keeps the last ones, so that their sender can be found.

Each has the number of its sender's posts that were refused with the same code so far.
Promises: at most POSTS_MAX posts, POSTS_OF_PEER_MAX of one address (IPv6: of a /64), of each at
most BODY_BYTES_MAX bytes of the body, in memory only. Never headers, query or path: these may have
secrets.
Does not: keep posts that are refused with a 5xx. Their cause is the service's own and is on
/readyz; one second of them would drive out all others.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from ingest.http.request import Request
from ingest.model.codes import PROBLEMS
from ingest.model.errors import Refused
from ingest.model.ledger import Ledger
from ingest.system.clock import rfc3339, unix_us

POSTS_MAX = 100
POSTS_OF_PEER_MAX = 20  # so that one noisy device does not drive out those of the others
BODY_BYTES_MAX = 200
COUNTS_MAX = 4_096  # counts by address and code; the oldest ones are forgotten


class _Post(NamedTuple):
    at_us: int
    peer: str
    sender: str  # the network of the peer
    refused: tuple[str, str | None, str | None]  # its code, that of the first item, its field
    body: bytes
    so_far: int  # so many posts of this sender were refused with this code so far


class RefusedPosts:
    """The refused posts of one process. `refused` has the form that http.routes.Port asks for."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._posts: deque[_Post] = deque()
        self._counts: dict[tuple[str, str], int] = {}

    def refused(self, request: Request | None, refused: Refused) -> None:
        """Count a refused request; keep it in place of an older one, if its sender is at fault.

        `request` is None if the bytes were not valid HTTP.
        """
        self._ledger.post_refused(refused.code)
        if request is None or PROBLEMS[refused.code].status >= 500:
            return
        body = refused.body_start[:BODY_BYTES_MAX]
        if not body:  # refused before it was read
            body = request.body_start(BODY_BYTES_MAX)
        client = request.client
        self._make_place(client.network)
        count = self._count(client.network, refused.code)
        named = _named(refused)
        self._posts.append(_Post(unix_us(), client.address, client.network, named, body, count))

    def _count(self, sender: str, code: str) -> int:
        counts = self._counts
        count = counts.get((sender, code), 0) + 1
        if count == 1 and len(counts) >= COUNTS_MAX:
            del counts[next(iter(counts))]
        counts[sender, code] = count
        return count

    def _make_place(self, sender: str) -> None:
        """Remove the oldest post: of this sender if it has its share, else of all."""
        own = [post for post in self._posts if post.sender == sender]
        if len(own) >= POSTS_OF_PEER_MAX:
            self._posts.remove(own[0])
        elif len(self._posts) >= POSTS_MAX:
            self._posts.popleft()

    def listed(self) -> list[dict[str, Any]]:
        """Return the posts for JSON, newest first. Bytes that are not UTF-8 become U+FFFD."""
        return [
            {
                "at": rfc3339(post.at_us),
                "peer": post.peer,
                **dict(zip(("code", "item_code", "field"), post.refused, strict=True)),
                "count": post.so_far,
                "body": post.body.decode("utf-8", "replace"),
            }
            for post in reversed(self._posts)
        ]


def _named(refused: Refused) -> tuple[str, str | None, str | None]:
    errors: Any = refused.fields.get("errors") or ({},)
    return refused.code, errors[0].get("code"), errors[0].get("field")
