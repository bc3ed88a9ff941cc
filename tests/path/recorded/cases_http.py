"""The requests of the corpus that are about HTTP itself: heads, bodies, paths, connections."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.path.recorded.cases import JSON_TYPE, READINGS, binary, head, item, post, times
from tests.path.recorded.exchange import Case, Part

KIND = f"Content-Type: {JSON_TYPE}"
CHUNKED = (KIND, "Transfer-Encoding: chunked")
TARGETS = """
    * //livez /livez/ /LIVEZ /%6Civez /livez?x=1 /livez#x /livez;x http://localhost/livez
    /../livez /livez%00 /v1 /metrics?x /
"""
LIVE = head("GET", "/livez")


def chunks(*texts: str) -> str:
    """Return a chunked body."""
    return "".join(f"{len(text.encode()):x}\r\n{text}\r\n" for text in (*texts, ""))


def malformed() -> Iterator[tuple[str, list[Part]]]:
    """Requests that are malformed or ambiguous."""
    good = json.dumps(item())
    size = f"Content-Length: {len(good)}"

    def readings(*lines: str) -> str:
        return head("POST", READINGS, KIND, *lines)

    yield "length and chunked", [readings(size, "Transfer-Encoding: chunked") + chunks(good)]
    yield "two lengths", [readings("Content-Length: 5", "Content-Length: 6") + "123456"]
    yield "negative length", [readings("Content-Length: -1")]
    yield "length in words", [readings("Content-Length: many")]
    yield "length with a plus", [readings("Content-Length: +5") + "12345"]
    yield "huge length", [readings("Content-Length: " + "9" * 40)]
    yield "unknown transfer coding", [readings("Transfer-Encoding: gzip") + good]
    yield "chunked twice", [readings("Transfer-Encoding: chunked, chunked") + "0\r\n\r\n"]
    yield "no host", ["GET /livez HTTP/1.1\r\n\r\n"]
    yield "two hosts", ["GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"]
    yield "bare line feeds", ["GET /livez HTTP/1.1\nHost: a\n\n"]
    yield "space before a colon", ["GET /livez HTTP/1.1\r\nHost : a\r\n\r\n"]
    yield "NUL in a header", [binary(b"GET /livez HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n")]
    yield "folded header", ["GET /livez HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"]
    yield "header without a name", ["GET /livez HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n"]
    yield "header without a colon", ["GET /livez HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"]
    yield "another protocol", ["SSH-2.0-client\r\n\r\n"]
    yield "TLS", [binary(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100))]
    yield "HTTP/2", ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    yield "HTTP/9.9", ["GET /livez HTTP/9.9\r\nHost: a\r\n\r\n"]
    yield "no version", ["GET /livez\r\nHost: a\r\n\r\n"]
    yield "two words only", ["GET HTTP/1.1\r\nHost: a\r\n\r\n"]
    yield "no method", [" /livez HTTP/1.1\r\nHost: a\r\n\r\n"]
    yield "method with a bad character", ["GE(T /livez HTTP/1.1\r\nHost: a\r\n\r\n"]
    yield "raw byte in the target", [binary(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n")]
    yield "bad chunk size", [head("POST", READINGS, *CHUNKED) + "zz\r\nabc\r\n0\r\n\r\n"]
    huge = "f" * 20 + "\r\nabc\r\n0\r\n\r\n"
    yield "huge chunk size", [head("POST", READINGS, *CHUNKED) + huge]
    broken: list[Part] = [
        head("POST", READINGS, *CHUNKED) + "5\r\n[1,2,\r\n",
        {"pause_s": 0.1},
        "nonsense\r\n",
    ]
    yield "bad chunk after a good one", broken
    yield "long header", [head("GET", "/livez", "X: " + "x" * 9_000)]
    yield "header at its bound", [head("GET", "/livez", "X: " + "x" * (8 * 1024 - 3))]
    yield "long header name", [head("GET", "/livez", "x" * 9_000 + ": 1")]
    yield "long target", [head("GET", "/" + "x" * 9_000)]
    many = [f"X-{number}: 1" for number in range(64)]
    yield "64 headers", [head("GET", "/livez", *many[:63])]
    yield "65 headers", [head("GET", "/livez", *many)]
    endless: list[Part] = ["GET /livez HTTP/1.1\r\nHost: a\r\n", {"pause_s": 0.05}]
    for number in range(10):
        endless += [f"X-{number}: {'x' * 4_000}\r\n", {"pause_s": 0.02}]
    yield "head without an end", endless


def bodies() -> Iterator[tuple[str, list[Part], int]]:
    """Ways in which a body arrives, with the number of answers."""
    good = json.dumps(item())
    size = f"Content-Length: {len(good)}"
    start = head("POST", READINGS, KIND, size)
    chunked = head("POST", READINGS, *CHUNKED)
    expect = "Expect: 100-continue"
    yield "in two pieces", [start + good[:10], {"pause_s": 0.1}, good[10:]], 1
    yield "after its head", [start, {"pause_s": 0.1}, good], 1
    yield "head in pieces", [start[:30], {"pause_s": 0.1}, start[30:] + good], 1
    yield "in one chunk", [chunked + chunks(good)], 1
    yield "in three chunks", [chunked + chunks(good[:9], good[9:20], good[20:])], 1
    late = chunks(good[:9], good[9:])
    yield "in chunks that come late", [chunked + late[:14], {"pause_s": 0.1}, late[14:]], 1
    yield "in chunks with a trailer", [chunked + chunks(good)[:-2] + "X: y\r\n\r\n"], 1
    extended = f"{len(good):x};a=b\r\n{good}\r\n0\r\n\r\n"
    yield "in chunks with an extension", [chunked + extended], 1
    yield "of no chunk", [chunked + "0\r\n\r\n"], 1
    large: list[Part] = [chunked + "4e20\r\n", times(" ", 20_000), "\r\n0\r\n\r\n"]
    yield "of 20,000 bytes in a chunk", large, 1
    beyond: list[Part] = [chunked + "5dc0\r\n", times(" ", 24_000), "\r\n0\r\n\r\n"]
    yield "of 24,000 bytes in a chunk", beyond, 1
    asked = head("POST", READINGS, KIND, size, expect)
    yield "expected", [asked, {"answered": 1}, good], 2
    yield "expected, and sent at once", [asked + good], 1
    unwanted = head("POST", READINGS, KIND, "Content-Length: 99999", expect)
    yield "expected, and too large", [unwanted], 1
    wrong = head("POST", READINGS, "Content-Type: text/plain", size, expect)
    yield "expected, of a wrong type", [wrong], 1
    yield "expected of another page", [head("POST", "/nothing", KIND, size, expect)], 1
    chunked_asked = head("POST", READINGS, *CHUNKED, expect)
    yield "expected in chunks", [chunked_asked, {"answered": 1}, chunks(good)], 2
    yield "of an unknown expectation", [head("POST", READINGS, KIND, size, "Expect: x") + good], 1
    yield "that never comes", [head("POST", READINGS, KIND, "Content-Length: 50") + "["], 1
    yield "that never comes in chunks", [chunked + "5\r\n[1,2,\r\n"], 1
    yield "that never begins", [start], 1
    yield "large, that never comes", [head("POST", READINGS, KIND, "Content-Length: 18000")], 1
    yield "of no declared length", [head("POST", READINGS, KIND)], 1
    old = head("POST", READINGS, KIND, size, version="1.0") + good
    yield "over HTTP/1.0", [old], 1
    kept = head("POST", READINGS, KIND, size, "Connection: keep-alive", version="1.0") + good
    yield "over HTTP/1.0, kept", [kept, {"answered": 1}, kept], 2
    yield "with Connection: close", post(good, "", "Connection: close"), 1
    yield "with Connection: keep-alive", post(good, "", "Connection: keep-alive"), 1
    yield "bad, with Connection: close", post("[", "", "Connection: close"), 1


def connections() -> Iterator[tuple[str, list[Part], int]]:
    """Several requests on one connection; with the number of answers."""
    five: list[Part] = [part for _ in range(5) for part in post(item())]
    yield "five posts at once", five, 5
    acks = ("buffered", "durable", "committed", "durable")
    yield "four acks", [part for ack in acks for part in post(item(), f"?ack={ack}")], 4
    mixed: list[Part] = [*post(item()), *post("["), *post(item(ts=5)), LIVE, *post(item())]
    yield "good and bad ones", mixed, 5
    yield "two after the answer", [*post(item()), {"answered": 1}, *post(item())], 2
    yield "garbage behind a post", [*post(item()), {"answered": 1}, "\1\2 garbage\r\n\r\n"], 2
    yield "nothing behind close", [*post(item(), "", "Connection: close"), LIVE], 1
    smuggled = str(post(item())[0])
    sized = head("GET", "/livez", f"Content-Length: {len(smuggled.encode())}")
    yield "a post in the body of GET", [sized + smuggled + LIVE], 2
    upgrade = head("GET", "/livez", "Connection: Upgrade", "Upgrade: websocket")
    yield "an upgrade", [upgrade + LIVE], 2
    yield "empty lines before a request", ["\r\n\r\n" + LIVE], 1
    yield "half a head", ["GET /livez HTTP/1.1\r\nHo"], 0
    yield "half a head after an answer", [LIVE, {"answered": 1}, "GET /livez"], 1


def paths(port: str) -> Iterator[tuple[str, str, str]]:
    """Methods and targets of both ports: name, method, target."""
    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE"):
        yield f"{method} /livez", method, "/livez"
    for method in ("GET", "HEAD", "POST"):
        yield f"{method} /readyz", method, "/readyz"
        yield f"{method} /nothing", method, "/nothing"
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "FETCH", "post"):
        yield f"{method} {READINGS}", method, READINGS
    for target in TARGETS.split()[: None if port == "data" else 5]:
        yield f"GET {target}", "GET", target


def http_cases() -> Iterator[Case]:
    """All requests about HTTP, to a service without a fault."""
    for name, send in malformed():
        yield Case(f"malformed: {name}", "working", "data", send)
    for group, cases in (("body", bodies()), ("connection", connections())):
        for name, send, answers in cases:
            yield Case(f"{group}: {name}", "working", "data", send, answers)
    two = head("HEAD", READINGS) + LIVE
    yield Case("connection: HEAD and GET", "working", "data", [two], 2, (0,))
    connect = "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n"
    yield Case("path: CONNECT", "working", "data", [connect])
    for port in ("data", "admin"):
        for name, method, target in paths(port):
            if port == "admin" and target == READINGS and method != "GET":
                continue
            bodiless = (0,) if method == "HEAD" else ()
            whole = not (port == "admin" and target in {"/", "/metrics?x"})
            asked: list[Part] = [head(method, target)]
            yield Case(f"path, {port}: {name}", "working", port, asked, 1, bodiless, not whole)
    yield Case("path: post as a whole URL", "working", "data", _elsewhere("http://localhost"))
    yield Case("path: post in escapes", "working", "data", _elsewhere("", "/v1/%72eadings"))


def _elsewhere(before: str, path: str = READINGS) -> list[Part]:
    start = str(post(item())[0])
    return [start.replace(READINGS, before + path, 1)]
