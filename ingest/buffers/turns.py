"""In which order posts that wait get room: the senders take turns.

The posts of one sender keep their order. Among senders, the one that was given fewer bytes is next.
So a sender with a thousand posts gets no more than one with a few: half, if these are two.
(It is start-time fair queueing: a post begins where the post before of its sender ends, but not
before the one that was served last.)
Promises: the memory is bounded by the posts that wait, and by SENDERS_MAX. A call costs O(log n).
Does not: know what room there is, or how long a post waits.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

SENDERS_MAX = 10_000  # of more, what they were given is forgotten: then all are equal again
SPARE = 64

Post = TypeVar("Post", bound=Hashable)


class Turns(Generic[Post]):
    """Posts that wait, each with its sender and its bytes. `posts` are those, oldest first."""

    def __init__(self) -> None:
        self.posts: dict[Post, tuple[str, int]] = {}  # of each: the sender, and its bytes
        self._heap: list[tuple[int, int, Post]] = []  # where it begins, its number
        self._ends: dict[str, int] = {}  # of a sender: where its last post ends
        self._begins: dict[str, int] = {}  # and where it begins: no later one may begin before it
        self._own: dict[str, int] = {}  # bytes that wait, of a sender
        self._now = self._floor = 0
        self._number = 0

    def own_bytes(self, sender: str) -> int:
        """Return how many bytes of a sender wait."""
        return self._own.get(sender, 0)

    def add(self, post: Post, sender: str, size_bytes: int) -> None:
        """Add a post behind the others of its sender."""
        if len(self._ends) >= SENDERS_MAX and sender not in self._ends:
            self._ends.clear()
            self._begins.clear()
            self._floor = max((each[0] for each in self._heap), default=0)
        # A post before it may have left since, and counts no more; the others keep their order.
        own = max(self._ends.get(sender, 0), self._begins.get(sender, 0))
        begin = self._begins[sender] = max(self._now, self._floor, own)
        self._ends[sender] = begin + size_bytes
        self._own[sender] = self._own.get(sender, 0) + size_bytes
        self._number += 1
        self.posts[post] = sender, size_bytes
        heappush(self._heap, (begin, self._number, post))

    def first(self) -> Post | None:
        """Return the post whose turn it is."""
        heap = self._heap
        while heap and heap[0][2] not in self.posts:
            heappop(heap)  # it has left
        return heap[0][2] if heap else None

    def serve(self) -> None:
        """Remove the first one: it was given room."""
        self._now, _, post = heappop(self._heap)
        self._forget(post)

    def leave(self, post: Post) -> None:
        """Remove a post that was given nothing. It does not count for its sender."""
        sender, size_bytes = self._forget(post)
        if sender in self._ends:
            self._ends[sender] -= size_bytes
        if len(self._heap) > 2 * len(self.posts) + SPARE:
            self._heap = [each for each in self._heap if each[2] in self.posts]
            heapify(self._heap)

    def clear(self) -> None:
        """Remove all posts."""
        self.posts.clear()
        self._own.clear()
        self._begin_again()

    def _forget(self, post: Post) -> tuple[str, int]:
        sender, size_bytes = self.posts.pop(post)
        own_bytes = self._own.pop(sender, 0) - size_bytes
        if own_bytes > 0:
            self._own[sender] = own_bytes
        else:
            self._begins.pop(sender, None)
        if not self.posts:
            self._begin_again()
        return sender, size_bytes

    def _begin_again(self) -> None:
        self._heap.clear()
        self._ends.clear()
        self._begins.clear()
        self._now = self._floor = 0
