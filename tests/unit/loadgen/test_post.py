"""A post is one whole request; a URL is read, or refused with a reason."""

from __future__ import annotations

import gzip

import pytest

from loadgen.traffic.post import Target, compress, finish, head_of, target_of
from tests.support.receiver import GOOD, running_receiver


def test_request_is_http_as_the_standard_says() -> None:
    """The request has exactly these lines and bytes."""
    assert finish(head_of("/v1/readings?ack=buffered", "host:8080"), b"[1]") == (
        b"POST /v1/readings?ack=buffered HTTP/1.1\r\n"
        b"Host: host:8080\r\n"
        b"User-Agent: iot-ingest-loadgen\r\n"
        b"Content-Type: application/json\r\n"
        b"Content-Length: 3\r\n"
        b"\r\n"
        b"[1]"
    )


@pytest.mark.parametrize("zipped", [False, True])
async def test_receiver_takes_the_request(zipped: bool) -> None:
    """The service accepts the request, plain and as gzip."""
    async with running_receiver() as receiver:
        body = compress(GOOD) if zipped else GOOD
        head = head_of("/v1/readings", receiver.address, gzip=zipped)
        answer = await receiver.send(finish(head, body))
    assert answer.status == 202, answer
    assert answer.document["accepted"] == 1


def test_compressed_body_is_gzip_and_always_the_same() -> None:
    """The same body always gives the same gzip bytes."""
    body = b"reading " * 1000
    assert gzip.decompress(compress(body)) == body
    assert compress(body) == compress(body)
    assert len(compress(body)) < len(body) / 10


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "path"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1", 8080, "127.0.0.1:8080", "/v1/readings"),
        ("http://127.0.0.1:8080/", "127.0.0.1", 8080, "127.0.0.1:8080", "/v1/readings"),
        ("http://h:1/v1/readings", "h", 1, "h:1", "/v1/readings"),
        ("http://h:1/v1/readings/", "h", 1, "h:1", "/v1/readings"),
        ("http://h/behind/a/proxy", "h", 80, "h", "/behind/a/proxy/v1/readings"),
        ("http://[::1]:8080", "::1", 8080, "[::1]:8080", "/v1/readings"),
        ("HTTP://Host.Example", "host.example", 80, "Host.Example", "/v1/readings"),
        ("https://host", "host", 443, "host", "/v1/readings"),
        ("https://host:8443/", "host", 8443, "host:8443", "/v1/readings"),
    ],
)
def test_url_says_where_to_post(url: str, host: str, port: int, authority: str, path: str) -> None:
    """The service's URL and that of its readings give the same target."""
    found = target_of(url)
    assert found == Target(host, port, authority, path, url.startswith("https"))
    assert found.url == f"{url.lower().partition(':')[0]}://{authority}{path}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8080",
        "ftp://host",
        "http://",
        "http://:8080",
        "http://host:0",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://user@host",
        "http://host/?ack=buffered",
        "http://host/#x",
        "http://ho st/",
        "http://host/\r\nX: y",
        "http://höst/",
    ],
)
def test_what_is_no_url_is_refused_with_a_reason(url: str) -> None:
    """The error names the given text."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is checked below
        target_of(url)
    assert repr(url) in str(caught.value)
