"""Rows of access: where a token is found, what is none, what it may send, pages of other sites."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.support.receiver import GOOD, OTHER, SECRET, head, line
from tests.unit.receiver.rows import Group, Row, request

BEARER = {"Authorization": f"Bearer {SECRET}"}
PAGE = "/v1/readings"
KEPT = [("d1", "temperature", 21.5)]


def post(query: str = "", headers: Any = (), body: bytes = GOOD, **more: Any) -> bytes:
    """Return a post of readings."""
    return request(PAGE + query, body, headers, **more)


def basic(user: str, password: str) -> dict[str, str]:
    """Return the header of a user and password."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def places(token: str) -> list[tuple[str, dict[str, str]]]:
    """Return all places where a client may send a token: query, headers."""
    return [
        ("", {"Authorization": f"Bearer {token}"}),
        ("", {"authorization": f"bearer   {token}"}),
        ("", {"Authorization": f"Token {token}"}),
        ("", {"Authorization": f"Token user:{token}"}),
        ("", basic("anybody", token)),
        (f"?p={token}", {}),
        (f"?u=me&p={token}&ack=buffered", {}),
        (f"?ack=buffered&p=%69{token[1:]}", {}),
        ("", {"X-API-Key": token}),
        ("", {"x-auth-token": token}),
        ("", {"Authorization": "Digest x", "X-API-Key": token}),
        ("", {"Authorization": "Token ", "X-Auth-Token": token}),
    ]


def unauthorized(sent: bytes) -> Row:
    """Return the row of a post that has no token, or more than one."""
    counts = {("posts_refused", "unauthorized"): 1}
    return Row(sent, 401, "unauthorized", counts=counts, headers={"www-authenticate": "Bearer"})


FOUND = [
    *(Row(post(*place), 202, kept=KEPT) for place in places(SECRET)),
    *(unauthorized(post(*place)) for place in places(OTHER)),
    # A load balancer has none.
    Row(head("GET", "/livez"), 200),
    Row(head("GET", "/readyz"), 503),
    # The text of a refusal names a parameter, never its value.
    Row(post(f"?p={SECRET}&q=1"), 400, "unknown_parameter"),
    Row(post(f"?p={SECRET}&ack=x"), 400, "bad_parameter"),
]
WRONG = [  # no place is looked at after the first one that has a token, and none may have two
    unauthorized(post(query, headers))
    for query, headers in (
        ("", ()),
        ("", {"Authorization": ""}),
        ("", {"Authorization": SECRET}),
        ("", {"Authorization": f"Bearer {SECRET}x"}),
        ("", {"Authorization": f"Bearer {SECRET[:-1]}"}),
        ("", {"Authorization": f"Bearer {SECRET},{SECRET}"}),
        ("", {"Authorization": "Bearer " + "x" * 7000}),
        ("", {"Authorization": "Bearer \xff\xfe"}),
        ("", {"Authorization": "Basic !!!"}),
        ("", {"Authorization": "Basic \xff"}),
        ("", {"Authorization": "Basic " + base64.b64encode(SECRET.encode()).decode()}),
        ("", {"Authorization": f"Bearer {OTHER}", "X-API-Key": SECRET}),
        ("?p=", ()),
        (f"?P={SECRET}", ()),
        (f"?p={SECRET}%00", ()),
        (f"?p={SECRET}&p={SECRET}", ()),
        (f"?p={OTHER}", {"X-API-Key": SECRET}),
        ("?p=%ff%fe&u=%00", ()),
        ("", [("Authorization", f"Bearer {SECRET}"), ("authorization", f"Bearer {SECRET}")]),
        ("", [("X-API-Key", SECRET), ("x-api-key", OTHER)]),
        ("", {"Cookie": f"token={SECRET}"}),
    )
]
OPEN = [  # devices that have a token need not be changed
    Row(post(query, headers), 202, kept=KEPT)
    for query, headers in (
        ("", [("Authorization", "Bearer x"), ("authorization", "Bearer y")]),
        ("?u=a&p=b&p=c", ()),
        ("", ()),
    )
]
TRICKS = (
    *("//v1/readings", "/v1//readings", "/v1/readings/", "/v1/readings/../readings"),
    *("/write/../v1/readings", "/./v1/readings", "/%2e/v1/readings", "/livez/%2e%2e/v1/readings"),
    *("/V1/READINGS", "/v1/readings;p=1", "/v1/readings%00", "/livez/../write"),
    *("//write", "/influx/../write", "/api/v2/write/"),
)
SAME = (
    "/v1/readings#",
    "/v1/%72eadings",
    "/v1%2Freadings",
    "/%76%31/readings",
    "http://other/v1/readings",
    "/w%72ite",
)
SPELT = [  # without a token, a page is guarded as itself however it is spelt
    *(Row(request(target, GOOD), 404) for target in TRICKS),
    *(Row(request(target, GOOD), 401) for target in SAME),
    Row(request("*", GOOD), 400),
    Row(request("other:80", GOOD), 400),
]
LINES_ONLY = [
    *(Row(request(target, GOOD, BEARER), 404) for target in TRICKS),
    *(Row(request(target, GOOD, BEARER), 403) for target in SAME[:5]),
    Row(request(SAME[5], GOOD, BEARER), 400, "not_lines"),
]
SMUGGLED = [  # what one program takes for a token and another one does not, is none
    Row(post().replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % lines.encode("latin-1"), 1), status)
    for lines, status in (
        (f"Authorization: Bearer\r\n  {SECRET}", 400),
        (f"Authorization : Bearer {SECRET}", 400),
        (f" Authorization: Bearer {SECRET}", 400),
        (f"Authorization\t: Bearer {SECRET}", 400),
        (f"X_API_Key: {SECRET}", 401),
        (f"X-Forwarded-Authorization: Bearer {SECRET}", 401),
        (f"Proxy-Authorization: Bearer {SECRET}", 401),
        (f"Authorization: Bearer {SECRET}\r\nAuthorization: Bearer {OTHER}", 401),
        (f"Authorization: Bearer {OTHER}\r\nAuthorization: Bearer {SECRET}", 401),
        (f"Authorization: Bearer {OTHER}\r\n X-API-Key: {SECRET}", 400),
        (f"X: 1\nAuthorization: Bearer {SECRET}", 400),
        (f"X: 1\rAuthorization: Bearer {SECRET}", 400),
        (f"Authorization: Bearer {SECRET}\0", 400),
        ("X-Client-Cert-Name: garden\r\nX-SSL-Client-CN: garden", 401),
        ("X-Forwarded-User: garden", 401),
    )
]
TRAILER = (
    f"POST {PAGE} HTTP/1.1\r\nHost: door\r\nTransfer-Encoding: chunked\r\n"
    f"Trailer: Authorization\r\n\r\n{len(GOOD):x}\r\n{GOOD.decode()}\r\n0\r\n"
    f"Authorization: Bearer {SECRET}\r\n\r\n"
).encode()
NEXT = [  # a token is of its request, and not of the next one or of a trailer
    Row((post("", BEARER) + post()) * 2, 202, then=(401, 202, 401), kept=KEPT * 2),
    Row(TRAILER, 401),
    Row(post("", {**BEARER, "Transfer-Encoding": "chunked"}), 400),
    # Its body is not waited for.
    Row(request(PAGE, None, {"Content-Length": "1000000"}), 401, headers={"connection": "close"}),
]


def of(*devices: str) -> bytes:
    """Return a post with a reading of each device."""
    return json.dumps([{"device_id": it, "metric": "m", "value": 1} for it in devices]).encode()


MANY = ["green-1"] * 1_000 + ["blue"] + ["green-2"] * 1_000
GREENS = [
    Row(
        post("", BEARER, of("green-1", "blue", "green-2")),
        202,
        says='"errors":[{"index":1,"code":"not_allowed"',
        kept=[("green-1", "m", 1.0), ("green-2", "m", 1.0)],
        letters=[
            {
                "reason": "invalid",
                "code": "not_allowed",
                "sender": "garden",
                "devices": ("green-*",),
                "original": of("blue")[1:-1],
            }
        ],
    ),
    Row(
        post("", BEARER, of(*MANY)),
        202,
        says='"errors":[{"index":1000,',
        kept=2_000,
        letters=[{"code": "not_allowed"}],
    ),
]
GREEN = [  # nothing of it is kept, also not as dead letters
    *(
        Row(
            post("", BEARER, body),
            403,
            "outside_scope",
            counts={("rejected", "outside_scope"): count},
        )
        for body, count in (
            (of("blue")[1:-1], 1),
            (of("blue", "blue"), 2),
            (of(*["blue"] * 2_000), 2_000),
        )
    ),
    # A device that is hidden: what is stored is what was checked.
    *(
        Row(post(query, BEARER, body), status)
        for body, status in (
            (b'{"device_id":"blue","device_id":"green","metric":"m","value":1}', 422),
            (b'{"device_id":"green","device_id":"blue","metric":"m","value":1}', 422),
            (b'{"device_id":"green","device\\u005fid":"blue","metric":"m","value":1}', 422),
            (b'{"device_id":"blu\\u0065","metric":"m","value":1}', 403),
            (b'{"device_id":"blue","values":{"a":1,"b":2}}', 403),
        )
        for query in ("", "?unknown=ignore")
    ),
    Row(post("", BEARER, of("green")), 202, kept=[("green", "m", 1.0)]),
]
SITES: list[tuple[list[tuple[str, str]], int]] = [
    ([], 202),
    ([("Origin", "http://door")], 202),
    ([("Origin", "http://evil.example")], 403),
    ([("Origin", "null")], 403),
    ([("Origin", "http://[")], 403),
    ([("Sec-Fetch-Site", "none")], 202),
    ([("Sec-Fetch-Site", "same-origin")], 202),
    ([("Sec-Fetch-Site", "same-site")], 403),
    ([("Sec-Fetch-Site", "cross-site")], 403),
    ([("Sec-Fetch-Site", "none"), ("sec-fetch-site", "cross-site")], 403),
    ([("Origin", "http://door"), ("origin", "http://evil.example")], 403),
]
BY_PAGES = [  # with a right token too: a page of another site may have learned it
    row
    for of_page, status in SITES
    for row in (
        Row(post("", [*BEARER.items(), *of_page]), status),
        Row(request("/livez", None, of_page, method="GET"), 200 if status == 202 else 403),
    )
]
HOSTS = [  # an attacker's name may point to the loopback; a program sends no Origin
    row
    for host, status in (
        ("localhost:8080", 202),
        ("127.0.0.1", 202),
        ("[::1]:8080", 202),
        ("Ingest.Example:443", 202),
        ("evil.example", 421),
        ("localhost.evil.example:8080", 421),
        ("", 421),
    )
    for row in (
        Row(post("", {"Origin": f"http://{host}"}, host=host), status),
        Row(post(host=host), 202, kept=KEPT),
    )
]
RATES = [  # both tokens send from one address
    *(Row(post("", BEARER), 202) for _ in range(3)),
    *(Row(post(f"?p={OTHER}"), 202) for _ in range(3)),
    Row(post("", BEARER), 429, "too_fast", counts={("posts_refused", "too_fast"): 1}),
    Row(post(f"?p={OTHER}"), 429, "too_fast"),
]
GROUPS = {
    "tokens": Group(FOUND, tokens=[line()]),
    "no tokens": Group(WRONG, tokens=[line()]),
    "open access": Group(OPEN, {"access": "open"}, [line()]),
    "spellings": Group(SPELT, tokens=[line()]),
    "spellings, lines only": Group(
        LINES_ONLY, tokens=[line(sources=("line",), formats=("line_protocol",))]
    ),
    "smuggled": Group(SMUGGLED, tokens=[line()]),
    "next request": Group(NEXT, tokens=[line()]),
    "several devices": Group(GREENS, tokens=[line(devices=("green-*",))]),
    "one device": Group(GREEN, tokens=[line(device="green")]),
    "rates": Group(
        RATES,
        {"sender_posts_per_s_max": 0.01, "sender_burst_s": 300},
        [line(), line(OTHER, "yard")],
    ),
    "another source": Group(
        [Row(post("", BEARER), 403, "outside_scope")], tokens=[line(sources=("ttn",))]
    ),
    "other sites": Group(BY_PAGES, tokens=[line()]),
    "hosts": Group(HOSTS, {"host_names": "ingest.example,b"}),
}
