"""Values of settings and of URLs: what is read, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from ingest.config.loading import load
from ingest.config.named_files import default_state_dir, state_dir
from ingest.config.settings import SECRETS, Settings, split_address
from ingest.config.values import (
    MIB,
    checked,
    duration_us,
    mask_url,
    moment_us,
    shown,
    split_broker_url,
)
from ingest.model.errors import ConfigError
from ingest.roles.role import configured_address, configured_monitors

KNOWN = {each.name: each for each in fields(Settings)}


def refusal(**flags: str) -> str:
    """Return the error of load() for wrong flags."""
    with pytest.raises(ConfigError) as caught:
        load(environ={}, flags=flags)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64MiB", 64 * MIB),
        ("64 mib", 64 * MIB),
        ("65536KiB", 64 * MIB),
        ("64M", 64 * MIB),
        ("1GiB", 1024 * MIB),
        ("2g", 2048 * MIB),
        (" 67108864 ", 64 * MIB),
        ("16TiB", 16 * 1024**4),
        ("1 t", 1024**4),
    ],
)
def test_size_may_carry_a_binary_suffix(text: str, value: int) -> None:
    """Sizes may have a unit; K, M, G and T are powers of 1,024."""
    assert checked(KNOWN["journal_bytes_max"], text, "test") == value


@pytest.mark.parametrize("text", ["64MB", "1.5GiB", "MiB", "-1KiB", "64 M iB", "64TiBs", "6e7"])
def test_size_of_another_form_is_refused(text: str) -> None:
    """A unit that could mean two sizes is an error, which names those that work."""
    with pytest.raises(ConfigError, match="not a whole number of bytes, KiB, MiB, GiB or TiB"):
        checked(KNOWN["buffer_bytes_max"], text, "test")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "-1", "ten", "1,5", "1 s", ""])
def test_number_that_is_none_is_refused(text: str) -> None:
    """NaN, infinity and a number with a unit are no durations."""
    with pytest.raises(ConfigError, match="setting batch_linger_s"):
        checked(KNOWN["batch_linger_s"], text, "test")


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:8080", ("::1", 8080)),
        ("[::]:1", ("::", 1)),
    ],
)
def test_address_is_split_into_host_and_port(address: str, parts: tuple[str, int]) -> None:
    """An IPv6 address needs brackets, as in a URL."""
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    ["", "8080", ":8080", "host:", "host:http", "h:65536", "h:-1", "h:٨", "[]:1", "::1:80"],
)
def test_address_of_another_form_is_refused_by_setting(address: str) -> None:
    """A port alone, a port by name, digits of other scripts, IPv6 without brackets: errors."""
    assert refusal(admin_listen=address).startswith("setting admin_listen (--admin-listen): ")


@pytest.mark.parametrize(
    ("text", "ts_us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2000-01-01T01:00:00+01:00", 946_684_800_000_000),
        ("1969-12-31T23:59:59.500000Z", -500_000),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000),
    ],
)
def test_oldest_ts_is_exact_to_the_microsecond(text: str, ts_us: int) -> None:
    """Times before 1970 are exact too."""
    assert moment_us(text) == ts_us


@pytest.mark.parametrize("text", ["", "yesterday", "2000-01-01", "2000-01-01T00:00:00", "0"])
def test_oldest_ts_without_offset_is_refused(text: str) -> None:
    """ts_min without an offset is an error: it would depend on the time zone of the machine."""
    assert "setting ts_min (--ts-min)" in refusal(ts_min=text)


@pytest.mark.parametrize("token", ["short", "with a space in it", "línea-de-admisión", "x" * 15])
def test_weak_admin_token_is_refused_without_being_shown(token: str) -> None:
    """A token is long enough, and can be sent in a header."""
    said = refusal(admin_token=token)
    assert said.startswith("setting admin_token (--admin-token): needs at least 16")
    assert token not in said


def test_database_url_is_never_shown_in_an_error() -> None:
    """An error about the database URL does not show the URL."""
    said = refusal(database_url="mysql://me:hunter2@db/x")
    assert said == "setting database_url (--database-url): does not begin with postgresql://"
    assert "hunter2" not in refusal(database_url="hunter2\0")
    assert {"admin_token", "broker_url", "database_url", "housekeeping_url"} == SECRETS


TORN = (
    "postgresql://me:12/hunter2@db/x",
    "postgresql://me:12?hunter2@db:1/x",
    "postgresql://me:12#hunter2@db/x",
    "postgresql://me:a,hunter2#y@db/x",
    "postgresql://me:p@ss:hunter2@db:1/x",
)


@pytest.mark.parametrize("url", TORN)
def test_url_that_its_password_tears_is_refused_and_not_quoted(url: str) -> None:
    """A URL that its password splits wrongly is an error, and nothing of the password is shown."""
    said = refusal(database_url=url)
    assert "cannot be read as a URL; in a password write / as %2F" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://me:pw@db:5432/x", "postgresql://me:***@db:5432/x"),
        (
            "postgresql://me:p%40w@a:1,b:2/x?sslmode=require",
            "postgresql://me:***@a:1,b:2/x?sslmode=require",
        ),
        (
            "postgresql://me@/x?host=/run/pg&password=pw",
            "postgresql://me@/x?host=/run/pg&password=***",
        ),
        ("postgresql://db/x?sslpassword=pw", "postgresql://db/x?sslpassword=***"),
        ("postgresql://db/x", "postgresql://db/x"),
        ("postgresql://db/x?PWD=pw", "postgresql://db/x?PWD=***"),
        ("postgresql://me:pw@[db", "***"),
        *((url, "***") for url in TORN),
    ],
)
def test_masked_url_keeps_all_but_the_password(url: str, masked: str) -> None:
    """A masked URL still shows user, host and database."""
    assert mask_url(url) == masked


def test_state_folder_is_systemds_roots_or_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """STATE_DIRECTORY comes first, then /var/lib for root, then the user's absolute XDG folder."""
    assert default_state_dir({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == Path("/var/lib/a")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_state_dir({"HOME": "/h"}) == Path("/var/lib/iot-ingest")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert default_state_dir({"HOME": "/h"}) == Path("/h/.local/state/iot-ingest")
    assert default_state_dir({"HOME": "/h", "XDG_STATE_HOME": "/s"}) == Path("/s/iot-ingest")
    assert default_state_dir({"HOME": "/h", "XDG_STATE_HOME": "s"}).is_relative_to("/h")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_state_dir({}) == Path("/home/me/.local/state/iot-ingest")
    assert state_dir(Settings(state_dir="~/x")) == Path("/home/me/x")
    assert state_dir(Settings(state_dir="x")) == Path.cwd() / "x"
    monkeypatch.setenv("STATE_DIRECTORY", "/sd")
    assert state_dir(Settings()) == Path("/sd")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("body_bytes_max", 1_048_576, "1 MiB"),
        ("body_bytes_max", 1_048_577, "1,048,577 bytes"),
        ("disk_free_bytes_min", 0, "0 bytes"),
        ("buffer_rows_max", 100_000, "100,000 rows"),
        ("dlq_replay_rows_per_s", 2_000, "2,000 rows/s"),
        ("batch_linger_s", 0.1, "0.1 s"),
        ("drain_s_max", 20.0, "20 s"),
        ("dlq_keep_days", 0.5, "0.5 days"),
        ("writers", 2, "2"),
        ("dlq_auto_replay", True, "true"),
        ("listen", "h:1", "h:1"),
    ],
)
def test_value_is_shown_with_its_unit(name: str, value: object, text: str) -> None:
    """A size is shown as MiB if it is whole, a number with its unit, and nothing is rounded."""
    assert shown(name, value) == text


@pytest.mark.parametrize(
    ("text", "hours"),
    [("30d", 720), ("12h", 12), (" 8 w ", 1_344), ("2y", 17_520), ("", None), ("  ", None)],
)
def test_duration_has_a_number_and_a_unit(text: str, hours: int | None) -> None:
    """An empty text is no duration."""
    assert duration_us(text) == (None if hours is None else hours * 3_600_000_000)


@pytest.mark.parametrize("text", ["30", "d", "0d", "-1d", "1.5d", "30 days", "30m", "1234567d"])
def test_other_durations_are_refused(text: str) -> None:
    """Also zero, and `m`, which may be minutes or months."""
    with pytest.raises(ValueError, match="such as 30d"):
        duration_us(text)


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
