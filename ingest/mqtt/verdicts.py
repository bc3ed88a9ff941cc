"""What the service's answer to a post means for its messages.

    2xx                                             taken: acknowledge
    400, 422 about what is in the messages          refused: a dead letter of our own, acknowledge
    413, 403 about what is in the messages          not now: a setting or the token may be changed
    all others (401, 404, 429, 5xx, none, ..)       again: it is not the messages

"Not now" and "again" acknowledge nothing.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import orjson

# All of the 400 that are about the messages. The others are about how we ask, so about settings.
# A parameter that is bad is the time of a message, X-Received-At: the clock here may be wrong.
_BODY = frozenset({"not_json", "not_lines", "bad_parameter"})
_FOR_EACH = frozenset({"empty", "all_invalid", "outside_scope"})  # each message would get the same


class PostVerdict(Enum):
    """What becomes of the messages of a post."""

    TAKEN = "taken"
    REFUSED = "refused"
    NOT_NOW = "not_now"
    AGAIN = "again"


class PostAnswer(NamedTuple):
    """A verdict, its cause, and whether it holds for each message of the post by itself."""

    verdict: PostVerdict
    code: str
    why: str
    for_each: bool = False


def answer_of(status: int, body: bytes) -> PostAnswer:
    """Return what an answer means."""
    if 200 <= status < 300:
        return PostAnswer(PostVerdict.TAKEN, "", "")
    code, why = _said(body)
    said = f"{status} {code}: {why}" if code or why else str(status)
    verdict = PostVerdict.AGAIN
    if (status == 400 and code in _BODY) or status == 422:
        verdict = PostVerdict.REFUSED
    elif status == 400 and code in {"empty", "all_invalid", "invalid_items", "dead_letters_full"}:
        verdict = PostVerdict.REFUSED  # the paths of line protocol have no 422
    elif status == 413 or (status == 403 and code == "outside_scope"):
        verdict = PostVerdict.NOT_NOW
    return PostAnswer(verdict, code or f"http_{status}", said, code in _FOR_EACH)


def _said(body: bytes) -> tuple[str, str]:
    try:
        document = orjson.loads(body)
    except ValueError:  # a proxy's page
        return "", ""
    if not isinstance(document, dict):
        return "", ""
    # Answers to line protocol have our code in `problem`, and in `code` that of InfluxDB.
    code = document.get("problem", document.get("code", ""))
    why = document.get("detail", document.get("message", ""))
    errors = document.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        why = f"{why}: {errors[0].get('message', '')}"
    return (code if isinstance(code, str) else ""), (why if isinstance(why, str) else "")
