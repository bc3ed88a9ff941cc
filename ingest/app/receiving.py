"""The composition root of the first half: from a request to a block in the buffer.

It connects the data port, the bodies of its posts, the rules of a reading, and the endpoint. Its
parameters are the buffer's inlet, the dead letters for invalid items, the admission of posts and
the database state.
Does not: import the writer or a sink, so a program can take posts in without them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

from ingest.access.tokens import Tokens
from ingest.app.post_rules import make_rules, open_tokens
from ingest.config.settings import Settings
from ingest.config.values import MIB, host_names, networks
from ingest.formats.post import Decoded
from ingest.http.clients import Proxies
from ingest.http.rounds import BodyLimits, PlainBodies
from ingest.http.routes import OnRefused
from ingest.http.tls import Certificate
from ingest.model.ledger import Ledger
from ingest.model.ports import Admission, Database, DeadLetters, Inlet
from ingest.receiver.access import Access
from ingest.receiver.endpoint import Endpoint
from ingest.receiver.pages.lines import LineOptions
from ingest.receiver.pages.mapped import SourceOptions
from ingest.receiver.senders import Rates, SenderLimits, Senders
from ingest.system.clock import monotonic_s
from ingest.system.waiting import first_of

# With several gateways a connection ends about so often, so that its client may reach another one.
CONNECTION_S = 300.0
LINE_BYTES_MAX = 16 * MIB  # of a post of line protocol: its clients send as many lines as they have
LINE_ROWS_MAX = 100_000  # of such a post, or of one of a source
HEADER_S_MAX = 10.0  # of a request, with the handshake
ANSWER_S_MAX = 4.0  # for these too: the clients of InfluxDB hang up after 5 s
SENDER_BURST_S = 10.0  # a sender that was quiet may send at once what its rates allow in this time
# In an inherited socket connections wait until posts are taken: a process that follows another one
# must refuse nothing. After this time they get `starting`.
QUEUE_S_MAX = 5.0
# While connections end, new ones wait in the socket for the next process: so not for long. A
# connection without a request for LEAVE_IDLE_S is closed.
LEAVE_IDLE_S, LEAVE_S_MAX = 1.0, 2.0


def taking(is_ready: Callable[[], bool], stopping: asyncio.Event) -> Callable[[], bool]:
    """Return what says whether to accept from an inherited socket."""
    until_s = monotonic_s() + QUEUE_S_MAX
    return lambda: not stopping.is_set() and (is_ready() or monotonic_s() > until_s)


async def leave(endpoint: Endpoint, *until: asyncio.Event) -> None:
    """Leave a given socket to the next process; what comes to open connections is still taken.

    It returns early if one of the events is set.
    """
    leaving = endpoint.step_down(idle_s=LEAVE_IDLE_S, timeout_s=LEAVE_S_MAX)
    await first_of(leaving, *(each.wait() for each in until))


def make_endpoint(
    settings: Settings,
    *,
    inlet: Inlet,
    levels: tuple[str, ...],
    dead_letters: DeadLetters,
    ledger: Ledger,
    admission: Admission,
    database: Database,
    health: Callable[[], tuple[int, bytes]],
    on_refused: OnRefused,
    on_decoded: Callable[[Decoded], None] | None = None,
    tokens: Tokens | None = None,
    gateways: int = 1,
) -> Endpoint:
    """Return the data port, which is not started yet; see Endpoint.

    It is one of so many `gateways` that share the limits of the settings.

    Raises ConfigError, and StartError if the certificate cannot be used.
    """
    lines = _line_options(settings)
    access = Access(
        tokens or Tokens(),
        access=settings.access,
        host_names=host_names(settings.host_names),
        has_proxies=bool(settings.trusted_proxies),
        certificate_header=settings.client_certificate_header,
    )
    return Endpoint(
        rules=make_rules(settings),
        plain_bodies=PlainBodies(
            body_bytes_max=settings.body_bytes_max,
            body_s_max=settings.body_s_max,
            all_bytes_max=settings.receiver_bytes_max,
            inflated_bytes_max=settings.inflated_bytes_max,
            largest=lines.bodies.body_bytes_max,
        ),
        line_options=lines,
        source_options=_source_options(settings, lines),
        connections_max=settings.connections_max,
        header_s_max=min(settings.body_s_max, HEADER_S_MAX),
        keepalive_s_max=settings.keepalive_s_max,
        ack_default=settings.ack_default,
        ack_wait_s_max=settings.ack_wait_s_max,
        inlet=inlet,
        levels=levels,
        dead_letters=dead_letters,
        ledger=ledger,
        access=access,
        senders=Senders(access, _limits(settings, gateways), ledger),
        admission=admission,
        database=database,
        health=health,
        on_refused=on_refused,
        on_decoded=on_decoded,
        connection_s_max=CONNECTION_S if gateways > 1 else math.inf,
        certificate=_certificate(settings),
        proxies=Proxies(trusted) if (trusted := networks(settings.trusted_proxies)) else None,
    )


def check_files(settings: Settings) -> None:
    """Read the files that a new gateway reads: sources, tokens, certificate. Blocks.

    Raises ConfigError and StartError, as the gateway would.
    """
    make_rules(settings)
    open_tokens(settings)
    _certificate(settings)


def _line_options(settings: Settings) -> LineOptions:
    """Return the options of line protocol: one post may have a part of each bound, at most."""
    bytes_max = min(
        LINE_BYTES_MAX, settings.buffer_bytes_max // 2, settings.receiver_bytes_max // 4
    )
    return LineOptions(
        rows_max=line_rows_max(settings),
        # As much as the journal takes at once while memory is full: no post waits for itself.
        rows_bytes_max=min(settings.buffer_bytes_max // 4, settings.journal_bytes_max // 2),
        bodies=BodyLimits(bytes_max, bytes_max),
        has_prefix=settings.line_prefix,
        answer_s_max=ANSWER_S_MAX,
    )


def line_rows_max(settings: Settings) -> int:
    """Return how many readings a post of line protocol or of a source may have."""
    return min(LINE_ROWS_MAX, max(1, settings.buffer_rows_max // 2))


def _source_options(settings: Settings, lines: LineOptions) -> SourceOptions:
    """Return the options of mapped sources: a post may have as many readings as one of lines."""
    return SourceOptions(
        rows_max=lines.rows_max,
        rows_bytes_max=min(settings.buffer_bytes_max // 16, lines.rows_bytes_max),
        answer_s_max=ANSWER_S_MAX,
    )


def _limits(settings: Settings, gateways: int) -> SenderLimits:
    """Return what one sender may send, if its token says nothing else."""
    return SenderLimits(
        Rates(settings.sender_readings_per_s_max, settings.sender_posts_per_s_max, SENDER_BURST_S),
        settings.sender_connections_max,
        gateways,
    )


def _certificate(settings: Settings) -> Certificate | None:
    if not settings.tls_cert_file:
        return None
    return Certificate(Path(settings.tls_cert_file), Path(settings.tls_key_file))
