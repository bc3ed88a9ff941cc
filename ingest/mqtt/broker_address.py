"""The URL of an MQTT broker, and the filters of its topics: what they must be."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ingest.model.errors import ConfigError

PORT, TLS_PORT = 1883, 8883
FILTER_BYTES_MAX = 65_535
SHARED = "$share/"


class MqttAddress(NamedTuple):
    """Where a broker is, and as which user; `user` is empty without one."""

    host: str
    port: int
    user: str
    tls: bool

    @property
    def shown(self) -> str:
        """The address for people, without the user."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.tls else ''}://{host}:{self.port}"


def mqtt_address(url: str) -> MqttAddress:
    """Return the parts of mqtt[s]://[USER@]HOST[:PORT]. Raises ConfigError, never with a password.

    A password may not be in it: other users of the machine can read a command line.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigError(f"--mqtt-url cannot be read: {error}") from None
    if parts.password is not None:
        raise ConfigError(
            "--mqtt-url has a password, which other users of this machine could read: put it into "
            "a file (--mqtt-password-file), or into INGEST_MQTT_PASSWORD"
        )
    if parts.scheme not in {"mqtt", "mqtts"} or not host or port == 0:
        raise ConfigError("--mqtt-url is not mqtt://HOST:PORT or mqtts://HOST:PORT")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ConfigError("--mqtt-url has more than a host and a port: topics are --topic")
    tls = parts.scheme == "mqtts"
    return MqttAddress(
        host, port or (TLS_PORT if tls else PORT), unquote(parts.username or ""), tls
    )


def check_filter(text: str) -> None:
    """Raise ConfigError if a filter of topics is not one that brokers take."""
    levels = text.split("/")
    if text.startswith(SHARED):
        if len(levels) < 3 or not levels[1] or {"+", "#"} & set(levels[1]) or not levels[2:]:
            raise ConfigError(f"--topic {text!r}: a shared one is $share/GROUP/TOPIC")
        levels = levels[2:]
    if not any(levels) and len(levels) == 1:
        raise ConfigError("--topic is empty")
    if "\0" in text or len(text.encode()) > FILTER_BYTES_MAX:
        raise ConfigError("--topic is longer than 65,535 bytes, or has a NUL")
    for place, level in enumerate(levels):
        alone = level in {"+", "#"}
        if not alone and ("+" in level or "#" in level):
            raise ConfigError(f"--topic {text!r}: + and # stand for a whole level")
        if level == "#" and place != len(levels) - 1:
            raise ConfigError(f"--topic {text!r}: # can only be the last level")
