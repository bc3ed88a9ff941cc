"""What `ingest doctor` finds about who may post, and how: tokens, certificate, sources."""

from __future__ import annotations

import math
import socket
from pathlib import Path

from ingest.access.rule import is_open
from ingest.access.token_file import SOON_US
from ingest.app.access import open_tokens
from ingest.app.rules import make_sources
from ingest.cli.doctor_database import FAIL, OK, WARN, Check, judged
from ingest.config.settings import Settings, split_address
from ingest.http.certificate import Certificate
from ingest.http.sites import is_loopback
from ingest.model.errors import ConfigError, StartError
from ingest.system.clock import rfc3339_s, unix_us
from ingest.system.state_folder import ServiceInfo
from ingest.system.surroundings import command_words
from ingest.system.words import counted

_NAME = "access"
DAYS_MIN = 14  # as the alert IngestCertificateEnds


def access_check(settings: Settings, service: ServiceInfo | None = None) -> Check:
    """Check what a start would check, whether a token ends soon, and how the service was started.

    `access` is decided at its start, so tokens that were made since do not count yet.
    """
    try:
        tokens = open_tokens(settings).tokens
        senders = [each for each in tokens.entries.by_digest.values() if not each.admin]
        loopback = _is_private(settings.listen)
        is_free = is_open(
            settings.access,
            private=loopback and not settings.trusted_proxies,
            tokens=len(senders),
            address=settings.listen,
            run=command_words()["run"],
        )
    except StartError as error:
        return Check(_NAME, FAIL, str(error))
    if is_free or (service is not None and service.is_open):
        where = "this machine" if loopback else "the network"
        restart = f" until the running service is restarted: `{command_words()['restart']}`"
        level, until = (OK if loopback else WARN, "") if is_free else (FAIL, restart)
        return Check(_NAME, level, f"everybody on {where} may post{until}")
    live = [each for each in senders if each.ends_us > unix_us()]
    told = f"a token is needed to post; {counted(len(live), 'token')}"
    certificates = [each.name for each in live if each.certificate]
    named = ", ".join(certificates[:1])
    ends_us = tokens.next_end_us if tokens.next_end_us < unix_us() + SOON_US else 0
    until = rfc3339_s(int(ends_us))
    no_header = f"{named} has a certificate, which counts only with client_certificate_header"
    return judged(
        _NAME,
        told,
        (not live, WARN, "nobody may post: make a token with `ingest token new NAME`"),
        (named and not settings.client_certificate_header, WARN, no_header),
        (ends_us, WARN, f"{told}; one ends at {until} (`ingest token rotate NAME`)"),
    )


def _is_private(listen: str) -> bool:
    """Whether all addresses of HOST:PORT are on the loopback; False if that is not known."""
    host, _ = split_address(listen)
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(is_loopback(f"{each[4][0]}:0") for each in found)


def certificate_check(settings: Settings) -> Check:
    """Check that the files can be used, and for how long. Blocks for some ms."""
    name = "certificate"
    try:
        found = Certificate(Path(settings.tls_cert_file), Path(settings.tls_key_file))
    except StartError as error:
        return Check(name, FAIL, str(error))
    if math.isnan(found.ends_s):
        return Check(name, WARN, f"no client would accept {settings.tls_cert_file}; make a new one")
    left_days = (found.ends_s - unix_us() / 1e6) / 86_400
    until = rfc3339_s(round(found.ends_s * 1e6))
    said = f"valid until {until}, {left_days:.0f} days"
    return judged(
        name,
        said,
        (left_days < 0, FAIL, f"has ended at {until}: clients refuse it; put a new one there"),
        (left_days < DAYS_MIN, WARN, f"{said}; put a new one there, a restart is not needed"),
    )


def sources_check(settings: Settings) -> Check:
    """Check that the tables can be compiled; the service would not start else."""
    name = "sources"
    try:
        sources = make_sources(settings)
    except ConfigError as error:
        return Check(name, FAIL, str(error))
    return Check(name, OK, f"{counted(len(sources), 'source')}: {', '.join(sources)}")
