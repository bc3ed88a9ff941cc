"""The requests of the corpus to the admin port, and to services that cannot take readings.

The token of the service is fixed, so the page's own token and cookie are derived here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from typing import Any

from tests.path.recorded.cases import READINGS, head, item, post, posts, times, working
from tests.path.recorded.cases_http import http_cases
from tests.path.recorded.exchange import Case, Part, compact
from tests.path.recorded.service import TOKEN

HELD_ROWS_MAX = 40  # of the service that cannot write
NOBODY = "0" * 32


def _derived(use: str) -> str:
    return blake2b(use.encode(), key=TOKEN.encode(), digest_size=24).hexdigest()


COOKIE = f"Cookie: ingest-{_derived('name')[:8]}={_derived('cookie')}"
CSRF = f"X-CSRF-Token: {_derived('csrf')}"
OURS = (CSRF, COOKIE)  # what our page sends after a log-in
BEARER = f"Authorization: Bearer {TOKEN}"


def act(path: str, body: Any, *lines: str) -> list[Part]:
    """Return a post to the admin port."""
    text = body if isinstance(body, str) else json.dumps(body)
    return [head("POST", path, f"Content-Length: {len(text.encode())}", *lines) + text]


def looks() -> Iterator[tuple[str, list[Part], bool]]:
    """Reads of the admin port; and whether only the head of the answer is compared."""
    pages = ("/", "/page/style.css", "/page/main.js", "/page/icon.svg", "/metrics", "/history")
    for path in pages:
        yield path, [head("GET", path)], True
        yield f"{path}, gzip", [head("GET", path, "Accept-Encoding: gzip, br")], True
    for path in ("/page/index.html", "/page/", "/page/../main.js", "/page/none.js"):
        yield path, [head("GET", path)], False
    yield "/history since", [head("GET", "/history?since=5")], True
    for query in ("since=x", "since=-1", "since=1&since=2", "x=1", "since=%ff"):
        yield f"/history?{query}", [head("GET", f"/history?{query}")], False
    for query in ("", "?tail=true", "?tail=false", "?tail=true&device_id=d1", "?device_id=d2"):
        yield f"/feed{query}", [head("GET", f"/feed{query}")], True
    for query in ("?device_id=a%0Ab", "?x=1", "?tail=1&tail=2", f"?device_id={'x' * 257}"):
        yield f"/feed{query:.30}", [head("GET", f"/feed{query}")], False
    yield "/devices", [head("GET", "/devices")], True
    yield "/devices?silent_s=10", [head("GET", "/devices?silent_s=10")], True
    for query in ("silent_s=0", "silent_s=x", "silent_s=nan", "x"):
        yield f"/devices?{query}", [head("GET", f"/devices?{query}")], False
    for query in ("device_id=nobody", "device_id=nobody&limit=3", "device_id=", "limit=5"):
        yield f"readings?{query}", [head("GET", f"/devices/readings?{query}")], False
    for query in ("device_id=a&limit=0", "device_id=a&limit=1e9", "device_id=%ff"):
        yield f"readings?{query}", [head("GET", f"/devices/readings?{query}")], False
    yield "/dead-letters", [head("GET", "/dead-letters")], True
    for query in ("device=nobody", "reason=drained", "reason=x", "limit=0", "id=x", f"id={NOBODY}"):
        yield f"/dead-letters?{query:.20}", [head("GET", f"/dead-letters?{query}")], False
    for host in ("evil.example", "127.0.0.1:80", "[::1]:1", "LOCALHOST", "localhost.evil.example"):
        asked = f"GET /devices/readings?device_id=nobody HTTP/1.1\r\nHost: {host}\r\n\r\n"
        yield f"Host {host}", [asked], False
    yield "/hold", [head("GET", "/hold")], False
    yield "/hold of another host", ["GET /hold HTTP/1.1\r\nHost: evil\r\n\r\n"], False


def acts() -> Iterator[tuple[str, list[Part]]]:
    """Requests of the admin port that change data, allowed and not allowed."""
    release = "/hold/release"
    yield "release", act(release, {}, BEARER)
    yield "release without a body", act(release, "", BEARER)
    yield "release and dead-letter", act(release, {"dead_letter": True}, BEARER)
    yield "release with a word", act(release, {"dead_letter": "yes"}, BEARER)
    yield "release with a list", act(release, "[]", BEARER)
    yield "release with no JSON", act(release, "{", BEARER)
    yield "release without a token", act(release, {})
    yield "release with a wrong token", act(release, {}, "Authorization: Bearer wrong")
    yield "release from the page", act(release, {}, *OURS)
    yield "release from the page, not logged in", act(release, {}, CSRF)
    yield "release from an old page", act(release, {}, "X-CSRF-Token: old", COOKIE)
    yield "release by GET", [head("GET", release, BEARER)]
    for path in ("/dead-letters/discard", "/dead-letters/replay"):
        name = path.rpartition("/")[2]
        yield f"{name} without a token", act(path, {"ids": [NOBODY]})
        yield f"{name} what is not there", act(path, {"ids": [NOBODY]}, *OURS)
        yield f"{name} from the page, not logged in", act(path, {"where": {}}, CSRF)
        yield f"{name} with the token", act(path, {"where": {"reason": "drained"}}, BEARER)
        other = "Origin: http://evil.example"
        yield f"{name} from elsewhere", act(path, {"ids": [NOBODY]}, *OURS, other)
        yield f"{name} with bad ids", act(path, {"ids": ["x"]}, *OURS)
        yield f"{name} without ids", act(path, {"ids": []}, *OURS)
        yield f"{name} with both", act(path, {"ids": [NOBODY], "where": {}}, *OURS)
        yield f"{name} of no reason", act(path, {"where": {"reason": "x"}}, *OURS)
        yield f"{name} with no JSON", act(path, "no", *OURS)
        yield f"{name} by GET", [head("GET", path)]
    yield "login", act("/login", f"token={TOKEN}")
    yield "login with nothing", act("/login", "")
    evil = "POST /login HTTP/1.1\r\nHost: evil\r\nContent-Length: 0\r\n\r\n"
    yield "login of another host", [evil]
    yield "login with two tokens", act("/login", "token=a&token=b")


def settled() -> Iterator[tuple[str, list[Part], bool]]:
    """Reads of the admin port after all posts have been written."""
    yield "readings of a device", [head("GET", "/devices/readings?device_id=same")], True
    yield "/devices", [head("GET", "/devices")], True
    for device in ("q-invalid", "q-values", "q-refused"):
        yield f"dead letters of {device}", [head("GET", f"/dead-letters?device={device}")], False
    yield "dead letters of a code", [head("GET", "/dead-letters?code=ts_unreadable&limit=2")], True
    yield "logged in", [head("GET", "/hold", COOKIE)], False
    yield "/readyz", [head("GET", "/readyz")], False


def letters() -> Iterator[tuple[str, list[Part]]]:
    """Posts whose dead letters are read after all is settled."""
    yield "invalid", post([item(device_id="q-good"), item(device_id="q-invalid", value="x")])
    values = {"a": 1, "b": "x", "c": None}
    yield "values", post(item(device_id="q-values", metric=..., value=..., values=values))
    yield "refused", post(item(device_id="q-refused", value=666), "?ack=committed")


def refusing(at: str) -> Iterator[Case]:
    """The same requests to every service that takes no readings."""
    sends: dict[str, list[Part]] = {
        "a post": post(item()),
        "a committed post": post(item(), "?ack=committed"),
        "a bad post": post("["),
        "a bad query": post(item(), "?x=1"),
        "a bad type": post(item(), kind="text/plain"),
        "a large post": post(item(), size=99_999),
        "GET": [head("GET", READINGS)],
        "/livez": [head("GET", "/livez")],
        "/readyz": [head("GET", "/readyz")],
        "another page": [head("GET", "/nothing")],
    }
    for name, send in sends.items():
        yield Case(f"{at}: {name}", at, "data", send)
    yield Case(f"{at}: HEAD /readyz", at, "data", [head("HEAD", "/readyz")], 1, (0,))
    for path in ("/readyz", "/livez"):
        yield Case(f"{at}: admin {path}", at, "admin", [head("GET", path)])
    yield Case(f"{at}: /metrics", at, "admin", [head("GET", "/metrics")], head_only=True)


def stuck() -> Iterator[Case]:
    """Requests in order to a service with little memory; its table is locked, then changed."""
    crowd = ("[", times(json.dumps(item()) + ",", HELD_ROWS_MAX - 3), json.dumps(item()), "]")
    large = item(value=None, metric="x" * 13_000)
    middling = item(value=None, metric="x" * 7_000)
    lockeds: dict[str, list[Part]] = {
        "durable": post(item(), "?ack=durable"),
        "a large bad item": post([item(), large]),
        "another large bad item": post([item(), {**large, "ts": 1}]),
        "no room for bad items": post([item(), middling, {**middling, "ts": 3}]),
        "no room for bad items, strict": post([item(), middling], "?strict=true"),
        "committed": post(item(), "?ack=committed"),
        "buffered": post(item(), "?ack=buffered"),
        "no ack": post(item()),
        "too many for the room": post(crowd),
        "bad ones only": post([item(value=None)]),
    }
    for name, send in lockeds.items():
        yield Case(f"locked: {name}", "locked", "data", send)
    on_hold: dict[str, list[Part]] = {
        "/readyz": [head("GET", "/readyz")],
        "committed": post(item(), "?ack=committed"),
        "buffered": post(item()),
        "too many for the room": post(crowd),
        "some bad": post([item(), item(value=None)]),
        "bad ones only": post([item(value=None)]),
        "a bad query": post(item(), "?ack=durable"),
    }
    for name, send in on_hold.items():
        yield Case(f"on_hold: {name}", "on_hold", "data", send)
    yield Case("on_hold: /hold", "on_hold", "admin", [head("GET", "/hold")], head_only=True)
    yield Case("on_hold: admin /readyz", "on_hold", "admin", [head("GET", "/readyz")])
    yield from refusing("draining")


@cache
def everything() -> list[Case]:
    """Return all requests of the corpus."""
    cases = [*posts(), *http_cases(), *working("letters", letters())]
    for name, send, head_only in looks():
        cases.append(Case(f"look: {name}", "working", "admin", send, head_only=head_only))
    cases += [Case(f"act: {name}", "working", "admin", send) for name, send in acts()]
    for name, send, head_only in settled():
        cases.append(Case(f"settled: {name}", "settled", "admin", send, head_only=head_only))
    cases += [*refusing("starting"), *refusing("disk_low")]
    asked = "/devices/readings?device_id=d"
    cases.append(Case("starting: readings", "starting", "admin", [head("GET", asked)]))
    cases += stuck()
    return [each._replace(send=compact(each.send)) for each in cases]
