"""Which targets are allowed."""

from __future__ import annotations

import pytest

from ingest.http_client.client import target_of
from ingest.model.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/hook?token=1", "https://a.example"),
        ("https://a.example:8443", "https://a.example:8443"),
        ("http://localhost:9/x", "http://localhost:9"),
        ("http://127.3.2.1/", "http://127.3.2.1"),
        ("http://[::1]:80/", "http://[::1]:80"),
    ],
)
def test_target_shows_its_server_only(url: str, shown: str) -> None:
    """Path and query may be secrets."""
    assert target_of(url) == (url, shown)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "not http://HOST"),
        ("a.example/hook", "not http://HOST"),
        ("ftp://a.example/", "not http://HOST"),
        ("https:///hook", "not http://HOST"),
        ("https://[::1/", "cannot be read"),
        ("https://a.example:99999/", "cannot be read"),
        ("https://user:pw@a.example/", "a user or a password"),
        ("https://a.example/x y", "%XX"),
        ("https://ä.example/", "%XX"),
        ("http://a.example/", "without TLS"),
        ("http://localhost.a.example/", "without TLS"),
        ("http://10.0.0.1/", "without TLS"),
        ("http://[2001:db8::1]/", "without TLS"),
    ],
)
def test_wrong_target_is_refused_in_words(url: str, why: str) -> None:
    """And never with a password in the message."""
    with pytest.raises(ConfigError, match=why) as caught:
        target_of(url)
    assert "pw" not in str(caught.value)


def test_plain_http_can_be_allowed() -> None:
    """For a network that is safe in another way."""
    assert target_of("http://10.0.0.1/", plain_http=True).shown == "http://10.0.0.1"
