"""The options of `ingest mqtt` that have a default. Declared as settings are, but only flags."""

from __future__ import annotations

from dataclasses import dataclass

from ingest.config.values import KIB, MIB, setting


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
