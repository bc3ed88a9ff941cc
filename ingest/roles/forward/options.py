"""The options of `ingest forward` that have a default. Declared as settings are, but only flags."""

from __future__ import annotations

from dataclasses import dataclass

from ingest.config.values import KIB, MIB, setting


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardOptions:
    """How a forwarder sends. Times in seconds, sizes in bytes."""

    in_flight: int = setting(4, "posts at once", within=(1, 256))
    send_rows_max: int = setting(5_000, "most readings in a post", within=(1, 100_000))
    send_bytes_max: int = setting(MIB, "largest body of a post", within=(4 * KIB, 64 * MIB))
    send_connect_s_max: float = setting(5.0, "time to connect to the target", within=(0.1, 60))
    send_s_max: float = setting(
        30.0, "deadline of a post, from its start to the end of the answer", within=(0.1, 600)
    )
    send_retry_s_max: float = setting(
        60.0, "longest pause between tries; a longer Retry-After is cut", within=(0.01, 3600)
    )
