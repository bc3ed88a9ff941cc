"""The URL of the broker: several servers, one login, and no password in an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.config.loading import load
from ingest.config.values import split_broker_url
from ingest.model.errors import ConfigError
from ingest.roles.role import configured_address, configured_monitors


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://h", (("nats://h:4222",), "", "")),
        ("nats://me:p@h:1,h2:2, h3", (("nats://h:1", "nats://h2:2", "nats://h3:4222"), "me", "p")),
        ("tls://me:p%40%2Fx@h/", (("tls://h:4222",), "me", "p@/x")),
    ],
)
def test_broker_url_is_split(url: str, expected: tuple[tuple[str, ...], str, str]) -> None:
    """Each server gets its scheme and port."""
    assert split_broker_url(url) == expected


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://me:hunter2@h", "nats:// or tls://"),
        ("me:hunter2@h", "nats:// or tls://"),
        ("nats://me:hunter2@@h", "%40"),
        ("nats://me:hunter2/x@h", "%2F"),
        ("nats://me:hunter2@h:port", "%40"),
        ("nats://me:hunter2@", "%40"),
        ("nats://me:hunter2@h/path", "%40"),
    ],
)
def test_broker_url_that_cannot_be_read_is_refused_without_its_password(
    url: str, words: str
) -> None:
    """The sentence names the setting."""
    with pytest.raises(ConfigError, match=f"setting broker_url .*{words}") as caught:
        load(environ={"INGEST_BROKER_URL": url})
    assert "hunter2" not in str(caught.value)


def test_broker_settings_become_addresses(tmp_path: Path) -> None:
    """The URL may be in a file; without one the broker is the embedded one."""
    (tmp_path / "url").write_text("tls://me:p@h1,h2\n")
    environ = {
        "INGEST_BROKER_URL_FILE": str(tmp_path / "url"),
        "INGEST_BROKER_CA_FILE": "/ca.pem",
        "INGEST_BROKER_MONITOR_URL": "http://h1:8222, http://h2:8222",
    }
    settings = load(environ=environ).settings
    address = configured_address(settings)
    assert address is not None
    assert address.servers == ("tls://h1:4222", "tls://h2:4222")
    assert (address.user, address.password, address.ca_file) == ("me", "p", "/ca.pem")
    assert not address.ours
    assert configured_monitors(settings) == ("http://h1:8222", "http://h2:8222")
    settings = load(environ={}).settings
    assert configured_address(settings) is None
    assert configured_monitors(settings) == ()


def test_monitor_url_that_is_none_is_refused() -> None:
    """The sentence names the setting."""
    with pytest.raises(ConfigError, match=r"broker_monitor_url .*http://HOST:PORT"):
        load(environ={"INGEST_BROKER_MONITOR_URL": "http://h:1,h2:8222"})
