"""Heads of requests: those that were parsed before, and what is wrong with others."""

from __future__ import annotations

from aiohttp.http_exceptions import LineTooLong

from ingest.http.request import AUTHORIZATION, Head

HEADERS_MAX = 64  # of a request
LINE_BYTES_MAX = 8 * 1024  # of its target, and of each header
HEAD_END = b"\r\n\r\n"

# A head is remembered when it comes for the second time. A proxy may give each request a number;
# such heads never come again, and would only fill the memory.
KNOWN_BYTES_MAX = 2 * 1024  # of a head
KNOWN_MAX = 512  # heads; when there are more, these become the older ones, which are kept too
SEEN_MAX = 4_096  # heads that came once; only their hashes are kept
# How the header begins. Heads in which it is written in another way have nothing in common.
_AUTHORIZATION = tuple(b"\r\n%b: " % name for name in (b"Authorization", b"authorization"))


class KnownHeads:
    """Heads that the parser has taken before, by their bytes.

    If each device has a token of its own, they are too many. So what they have in common is known
    too: the head with an empty Authorization.
    Promises: only the same bytes find a head, or what differs in the text of Authorization only. If
    a client sends new heads all the time, the heads that other clients use meanwhile stay.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self._older: dict[bytes, Head] = {}
        self._seen: set[int] = set()

    def find(self, text: bytes) -> Head | None:
        """Return the head with these bytes, if it is known, or made from one that is."""
        head = self._find(text)
        if head is None and (cut := _apart(text)) is not None:
            common = self._find(cut[0])
            if common is not None:
                head = common.with_authorization(cut[1])
                head.common = common
                if self._came_before(text):
                    self._remember(text, head)
        return head

    def _find(self, text: bytes) -> Head | None:
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
        if self._came_before(text):
            self._remember(text, head)
        cut = _apart(text)
        if cut is None or head.headers.getall(AUTHORIZATION) != [cut[1]]:
            return
        if self._came_before(cut[0]):
            self._remember(cut[0], head.with_authorization(""))

    def _came_before(self, text: bytes) -> bool:
        number = hash(text)
        if number in self._seen:
            return True
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen.add(number)
        return False

    def _remember(self, text: bytes, head: Head) -> None:
        if len(self._known) >= KNOWN_MAX:
            self._older, self._known = self._known, {}
        self._known[text] = head


def _apart(text: bytes) -> tuple[bytes, str] | None:
    """Return a head without the value of its first Authorization, and this value.

    None: it has none; or something is in it that the parser might not take, or take otherwise.
    """
    for begin in _AUTHORIZATION:
        at = text.find(begin)
        if at >= 0 and len(text) <= KNOWN_BYTES_MAX:
            at += len(begin)
            end = text.find(b"\r\n", at)
            value = text[at:end].decode("latin-1").strip(" ")
            if value.isascii() and value.isprintable():
                return text[:at] + text[end:], value
    return None


def code_of(fault: BaseException) -> str:
    """Return the problem code for bytes that the parser did not take."""
    if isinstance(fault, LineTooLong) or "Too many headers" in str(fault):
        return "headers_too_large"
    return "bad_request"
