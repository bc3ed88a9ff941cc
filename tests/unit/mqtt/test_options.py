"""The options of `ingest mqtt`, and of its broker's URL: what is refused, and how it is told."""

from __future__ import annotations

import pytest

from ingest.cli.commands import main
from ingest.model.errors import ConfigError
from ingest.mqtt.options import MqttAddress, check_filter, mqtt_address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker", MqttAddress("broker", 1883, "", False)),
        ("mqtts://me%40home@broker:9", MqttAddress("broker", 9, "me@home", True)),
        ("mqtts://[::1]/", MqttAddress("::1", 8883, "", True)),
    ],
)
def test_address_of_a_broker(url: str, address: MqttAddress) -> None:
    """The port has a default, and the user may have any character."""
    assert mqtt_address(url) == address
    assert "@" not in address.shown


@pytest.mark.parametrize(
    "url",
    ["broker", "http://broker", "mqtt://", "mqtt://a:0", "mqtt://a:x", "mqtt://a/t", "mqtt://a?x"],
)
def test_what_is_no_address_of_a_broker(url: str) -> None:
    """The error names the flag."""
    with pytest.raises(ConfigError, match="--mqtt-url"):
        mqtt_address(url)


def test_password_may_not_be_in_the_url() -> None:
    """Other users could read it; the error does not have it."""
    with pytest.raises(ConfigError, match="--mqtt-password-file") as caught:
        mqtt_address("mqtt://me:hidden@broker")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("text", ["#", "a/#", "+/b", "/", "a b/ü", "$share/g/a/#", "$share/g//x"])
def test_filters_that_are_taken(text: str) -> None:
    """As MQTT says."""
    check_filter(text)


@pytest.mark.parametrize(
    "text", ["", "a#", "a/#/b", "a+/b", "\0", "$share/g", "$share//a", "$share/+/a", "x" * 65_536]
)
def test_filters_that_are_refused(text: str) -> None:
    """A broker would close the connection."""
    with pytest.raises(ConfigError, match="--topic"):
        check_filter(text)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--source", "a b"], "ingest sources list"),
        (["--source", ""], "ingest sources list"),
        (["--source", "a", "--ack", "durable"], "--ack is not for a source"),
        (["--source", "a", "--format", "json"], "--format is not for a source"),
        (["--topic", "a/#/b"], "a/#/b"),
    ],
)
def test_wrong_flags_are_told_before_anything_starts(
    flags: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a sentence that names the flag."""
    assert main(["mqtt", "--mqtt-url", "mqtt://127.0.0.1", "--topic", "a", *flags]) == 2
    assert why in capsys.readouterr().err
