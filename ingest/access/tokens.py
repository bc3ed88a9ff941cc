"""The tokens in force: who a client is, what it may send, and what counts where there are none.

A client's head is read once, and its identity is kept with it. So a token that ends is not looked
up again: its identity says that it is not live any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fnmatch import translate
from functools import lru_cache
from glob import escape
from typing import Any

from ingest.access.token_lines import CERTIFICATE, NEVER_US, Entries, TokenEntry, digest_of
from ingest.model.errors import StartError
from ingest.model.ledger import Metric, Metrics
from ingest.system.clock import unix_us

AUTO, TOKEN, OPEN = "auto", "token", "open"  # the setting `access`
DEVICES_KNOWN_MAX = 4_096  # of one token: which of them it may speak for
_STEP = 64


class Identity:
    """Who sent a request, and what it may do. `live`: it is not revoked and has not expired.

    `globs` name the devices that it may speak for; none: all. `allows` says whether it may speak
    for a device; None: for all of them. The receiver keeps in `known` what it found out about it.
    """

    __slots__ = ("allows", "entry", "globs", "known", "live")

    def __init__(self, entry: TokenEntry) -> None:
        self.entry = entry
        self.live = True
        self.known: Any = None
        self.globs = (escape(entry.device),) if entry.device else entry.devices
        self.allows = allowed(self.globs) if self.globs else None

    def covers(self, source: str, form: str) -> bool:
        """Whether it may send in this form to this source."""
        entry = self.entry
        if entry.admin:
            return False
        of_source = not entry.sources or source in entry.sources
        return of_source and (not entry.formats or form in entry.formats)


ANYBODY = Identity(TokenEntry("", ""))  # where nobody is asked who they are


class Tokens:
    """All tokens of a file. `change` puts other ones in force."""

    def __init__(self) -> None:
        self.entries = Entries()
        self.has_admins = False  # a token for the admin port is there, also if it has ended
        self._identities: dict[str, Identity] = {}
        self.next_end_us = NEVER_US  # when the next live token ends; NEVER_US: none does

    def find(self, token: str) -> Identity | None:
        """Return the identity of a live token. The work is the same for every wrong one."""
        return self.with_digest(digest_of(token))

    def with_certificate(self, name: str) -> Identity | None:
        """Return the identity of a certificate with this name that somebody trusted has checked."""
        return self.with_digest(CERTIFICATE + name)

    def with_digest(self, digest: str) -> Identity | None:
        """Return the identity of the live token that has this digest."""
        identity = self._identities.get(digest)
        return identity if identity is not None and identity.live else None

    def change(self, entries: Entries, *, is_whole: bool = True) -> Iterator[None]:
        """Put these in force; a step of the iteration is short. Tokens not among them are revoked.

        The identity of a token stays the same if its entry does. Unless these are the whole file
        (`is_whole`), nothing is put in force if a token is missing.
        """
        now_us, known_before = unix_us(), 0
        old, new = self._identities, dict[str, Identity]()
        next_end_us, has_admins = NEVER_US, False
        for digest, entry in entries.by_digest.items():
            known = old.get(digest)
            known_before += known is not None
            if known is None or not known.live or known.entry != entry:
                known = Identity(entry)
                known.live = entry.ends_us > now_us
            else:  # what was read again is freed here, and not all of it in one long step
                entries.by_digest[digest] = known.entry
            if known.live:
                next_end_us = min(next_end_us, entry.ends_us)
            has_admins = has_admins or bool(entry.admin)
            new[digest] = known
            if not len(new) % _STEP:
                yield
        if known_before < len(old) and not is_whole:
            return
        self._identities, self.entries, self.next_end_us = new, entries, next_end_us
        self.has_admins = has_admins
        for at, (digest, identity) in enumerate(old.items()):
            if new.get(digest) is not identity:
                identity.live = False
            if not at % _STEP:
                yield
        self.expire()

    def expire(self) -> None:
        """Revoke those whose time is over; call it often, since it is nearly always cheap."""
        now_us = unix_us()
        if now_us < self.next_end_us:
            return
        self.next_end_us = NEVER_US
        for identity in self._identities.values():
            if identity.entry.ends_us <= now_us:
                identity.live = False
            else:
                self.next_end_us = min(self.next_end_us, identity.entry.ends_us)


@lru_cache(maxsize=1_000)
def allowed(globs: tuple[str, ...]) -> Callable[[str], bool]:
    """Return what says whether one of these globs names a device."""
    return _Allowed(globs).__getitem__


class _Allowed(dict[str, bool]):
    """Whether a token may speak for a device, by its id. One that is known is found without a call
    of Python code."""

    __slots__ = ("_globs", "_pattern")

    def __init__(self, globs: tuple[str, ...]) -> None:
        super().__init__()
        self._globs = globs
        self._pattern: re.Pattern[str] | None = None  # made at the first use: it takes 0.1 ms

    def __missing__(self, device_id: str) -> bool:
        if len(self) >= DEVICES_KNOWN_MAX:
            self.clear()
        if self._pattern is None:
            self._pattern = re.compile("|".join(map(translate, self._globs)))
        allowed = self[device_id] = self._pattern.match(device_id) is not None
        return allowed


METRICS: Metrics[Tokens] = (
    Metric(
        "tokens_end_seconds",
        "Until the next token ends, of those that end.",
        lambda it: None if it.next_end_us == NEVER_US else (it.next_end_us - unix_us()) / 1e6,
    ),
)


def is_open(access: str, *, private: bool, tokens: int, address: str, run: str) -> bool:
    """Return whether everybody may send to `address`; without it, a token is needed.

    It is `private` if only this machine reaches it, and no proxy is trusted that may bring posts of
    others. Raises StartError where `auto` finds nobody with a token for a port that is not private:
    then a start would refuse all devices. `run` is the program, for the text.
    """
    if access == AUTO and not private and not tokens:
        raise StartError(
            f"{address} is open to the network, or a trusted proxy is in front of it, and nobody "
            f"has a token. Make one, which devices send with each post: `{run} token new NAME` "
            "(with the --state-dir of the service, if it has one). Or let everybody post: "
            "--access open (INGEST_ACCESS=open)"
        )
    return access == OPEN or (access == AUTO and private and not tokens)
