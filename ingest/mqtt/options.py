"""What an `ingest mqtt` has to do, as its command line says it: broker, topics, options.

The options with a default are declared as settings are, but are only flags.
Does not: load the library of MQTT. The command checks its flags without that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from ingest.config.values import KIB, MIB, setting
from ingest.model.errors import ConfigError

if TYPE_CHECKING:
    from ingest.http_client.client import Target

PORT, TLS_PORT = 1883, 8883
FILTER_BYTES_MAX = 65_535
SHARED = "$share/"


@dataclass(frozen=True, kw_only=True, slots=True)
class MqttOptions:
    """How messages are received and posted. Times in seconds, sizes in bytes."""

    mqtt_receive_max: int = setting(
        1000, "most messages that are here and not acknowledged", within=(1, 65_535)
    )
    mqtt_session_days: float = setting(
        30.0, "how long the broker keeps messages for us while we are away", within=(0.001, 40_000)
    )
    mqtt_keepalive_s: float = setting(30.0, "a silent broker is asked after this", within=(5, 3600))
    in_flight: int = setting(2, "posts at once", within=(1, 64))
    send_messages_max: int = setting(1000, "most messages in a post", within=(1, 65_535))
    send_rows_max: int = setting(5_000, "about the most readings in a post", within=(1, 100_000))
    send_bytes_max: int = setting(
        512 * KIB,
        "largest body of a post; a larger message is posted alone",
        within=(KIB, 64 * MIB),
    )
    send_linger_s: float = setting(
        0.02, "how long a post waits for more messages, at most", within=(0, 10)
    )
    send_connect_s_max: float = setting(5.0, "time to connect, to either side", within=(0.1, 60))
    send_s_max: float = setting(
        30.0, "deadline of a post, from its start to the end of the answer", within=(0.1, 600)
    )
    send_retry_s_max: float = setting(
        30.0, "longest pause between tries; a longer Retry-After is cut", within=(0.01, 3600)
    )


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


class MqttTls(NamedTuple):
    """Files of certificates; empty: those of the system, and no certificate of our own."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


class MqttWanted(NamedTuple):
    """The whole task. `target` is the URL of the posts; `version` of MQTT is 5 or 3.

    With a `source`, messages go there, and `form` means nothing. `password` and `token` are read
    at each use, so they may change. The broker keeps messages for `client_id`.
    """

    name: str
    address: MqttAddress
    client_id: str
    topics: tuple[str, ...]
    target: Target
    form: str = "json"
    source: str = ""
    version: int = 5
    tls: MqttTls = MqttTls()
    password: Callable[[], str] = str
    token: Callable[[], str] = str
    service_ca_file: str = ""
    options: MqttOptions = MqttOptions()


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
        if len(levels) < 3 or not levels[1] or {"+", "#"} & set(levels[1]):
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
