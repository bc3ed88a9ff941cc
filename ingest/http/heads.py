"""Heads of requests: those that were parsed before, and what is wrong with others."""

from __future__ import annotations

from aiohttp.http_exceptions import LineTooLong

from ingest.http.request import Head

HEADERS_MAX = 64  # of a request
LINE_BYTES_MAX = 8 * 1024  # of its target, and of each header
HEAD_END = b"\r\n\r\n"

# A head is remembered when it comes for the second time. A proxy may give each request a number;
# such heads never come again, and would only fill the memory.
KNOWN_BYTES_MAX = 2 * 1024  # of a head
KNOWN_MAX = 512  # heads; when there are more, these become the older ones, which are kept too
SEEN_MAX = 4_096  # heads that came once; only their hashes are kept


class KnownHeads:
    """Heads that the parser has taken before, by their bytes.

    Promises: only the same bytes find a head. If a client sends new heads all the time, the heads
    that other clients use meanwhile stay.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self._older: dict[bytes, Head] = {}
        self._seen: set[int] = set()

    def find(self, text: bytes) -> Head | None:
        """Return the head with these bytes, if it is known."""
        head = self._known.get(text)
        if head is None and (head := self._older.get(text)) is not None:
            self._remember(text, head)
        return head

    def parsed(self, text: bytes, head: Head) -> None:
        """Note a head that the parser took in one piece; its request has arrived whole."""
        if not (head.is_plain and head.body_bytes >= 0):
            return
        if head.method == "HEAD" or head.message.upgrade or len(text) > KNOWN_BYTES_MAX:
            return
        number = hash(text)
        if number in self._seen:
            self._remember(text, head)
            return
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen.add(number)

    def _remember(self, text: bytes, head: Head) -> None:
        if len(self._known) >= KNOWN_MAX:
            self._older, self._known = self._known, {}
        self._known[text] = head


def code_of(fault: BaseException) -> str:
    """Return the problem code for bytes that the parser did not take."""
    if isinstance(fault, LineTooLong) or "Too many headers" in str(fault):
        return "headers_too_large"
    return "bad_request"
