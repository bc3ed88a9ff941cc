"""What `ingest doctor` finds about who may post: the file of tokens, and the setting `access`."""

from __future__ import annotations

import socket

from ingest.access.rule import is_open
from ingest.access.token_file import SOON_US
from ingest.app.access import open_tokens
from ingest.cli.doctor_database import FAIL, OK, WARN, Check
from ingest.config.settings import Settings, split_address
from ingest.http.sites import is_loopback
from ingest.model.errors import StartError
from ingest.system.clock import rfc3339_s, unix_us
from ingest.system.state_folder import ServiceInfo
from ingest.system.surroundings import command_words
from ingest.system.words import counted

_NAME = "access"


def access_check(settings: Settings, service: ServiceInfo | None = None) -> Check:
    """Check what a start would check, whether a token ends soon, and how the service was started.

    `access` is decided at its start, so tokens that were made since do not count yet.
    """
    run = command_words()["run"]
    try:
        tokens = open_tokens(settings).tokens
        senders = [each for each in tokens.entries.by_digest.values() if not each.admin]
        loopback = _is_private(settings.listen)
        is_free = is_open(
            settings.access,
            private=loopback and not settings.trusted_proxies,
            tokens=len(senders),
            address=settings.listen,
            run=run,
        )
    except StartError as error:
        return Check(_NAME, FAIL, str(error))
    if is_free or (service is not None and service.is_open):
        where = "this machine" if loopback else "the network"
        restart = f" until the running service is restarted: `{command_words()['restart']}`"
        level, until = (OK if loopback else WARN, "") if is_free else (FAIL, restart)
        return Check(_NAME, level, f"everybody on {where} may post{until}")
    live = [each for each in senders if each.ends_us > unix_us()]
    if not live:
        return Check(_NAME, WARN, f"nobody may post: make a token with `{run} token new NAME`")
    unread = next((each for each in live if each.certificate), None)
    if unread is not None and not settings.client_certificate_header:
        told = f"{unread.name} has a certificate, which counts only with client_certificate_header"
        return Check(_NAME, WARN, told)
    told = f"a token is needed to post; {counted(len(live), 'token')}"
    if tokens.next_end_us < unix_us() + SOON_US:
        until = rfc3339_s(int(tokens.next_end_us))
        return Check(_NAME, WARN, f"{told}; one ends at {until} (`{run} token rotate NAME`)")
    return Check(_NAME, OK, told)


def _is_private(listen: str) -> bool:
    """Whether all addresses of HOST:PORT are on the loopback; False if that is not known."""
    host, _ = split_address(listen)
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(is_loopback(f"{each[4][0]}:0") for each in found)
