"""Who sends a post, and how much it has sent: the token of its head, and its quota."""

from __future__ import annotations

import math
from typing import NamedTuple

from ingest.access.entries import TokenEntry
from ingest.access.tokens import ANYBODY, Identity
from ingest.http.request import Request
from ingest.model.errors import Refused
from ingest.receiver.access import Access
from ingest.receiver.busiest import Busiest
from ingest.receiver.places import Places
from ingest.receiver.quotas import Quota, Quotas, Rates


class SenderLimits(NamedTuple):
    """What one sender may send to all processes together. 0: no limit."""

    rates: Rates = Rates()
    connections_max: int = 0
    processes: int = 1

    @property
    def rates_here(self) -> Rates:
        """The rates of one process."""
        return self.rates.shared_by(self.processes)

    @property
    def connections_here(self) -> int:
        """The most connections to one process."""
        return math.ceil(self.connections_max / self.processes)

    def of(self, entry: TokenEntry) -> SenderLimits:
        """Return those of a token: its own, and for the others these."""
        rates, connections_max = self.rates, self.connections_max
        if entry.readings_per_s_max is not None:
            rates = rates._replace(readings_per_s=entry.readings_per_s_max)
        if entry.posts_per_s_max is not None:
            rates = rates._replace(posts_per_s=entry.posts_per_s_max)
        if entry.connections_max is not None:
            connections_max = entry.connections_max
        return SenderLimits(rates, connections_max, self.processes)


class KnownSender(NamedTuple):
    """Who sends: found once for each head. `name` is its token's; "" where nobody needs one.

    `has_rates`: it has a quota, or its network has one. `by_certificate`: a trusted proxy must
    bring each of its requests.
    """

    identity: Identity
    name: str
    quota: Quota | None
    has_rates: bool
    connections_max: int
    by_certificate: bool = False

    def of(self, request: Request) -> str:
        """Return the sender as in Block: the token, or the network."""
        return self.name or request.client.network


class Senders:
    """Finds the senders of posts. `limits` are those of a sender that has none of its own."""

    def __init__(self, access: Access, limits: SenderLimits) -> None:
        self._access = access
        self._limits = limits
        self._quotas = Quotas(limits.rates_here)
        self._places = Places()
        self._counts_places = limits.connections_max > 0
        self.busiest = Busiest()

    def find(
        self,
        request: Request,
        query: str,
        *,
        source: str,
        form: str,
        in_path: str = "",
        in_query: bool = True,
    ) -> tuple[KnownSender, str]:
        """Return the sender, and the query without its token; for the last two see Access.identify.

        Raises Refused: it has no valid token, or may not send this form to this source, or is a
        page of another site.
        """
        self._access.check_site(request.head)
        if request.method == "GET":
            self._access.check_get(request.head)
        identity, query = self._access.identify(request, query, in_path, in_query=in_query)
        if not identity.covers(source, form):
            raise Refused(
                "outside_scope",
                f"the token is not for the source {source!r} with the format {form!r}: "
                "`ingest token list` shows what it is for",
            )
        return self._known(identity), query

    def _known(self, identity: Identity) -> KnownSender:
        limits, entry = self._limits, identity.entry
        if identity is ANYBODY:
            return KnownSender(identity, "", None, limits.rates.any, limits.connections_here)
        name, own = f"token {entry.name}", limits.of(entry)
        quota = self._quotas.of(name, own.rates_here) if own.rates.any else None
        if own.connections_max:  # from now on those of others count, too: they may change hands
            self._counts_places = True
        return KnownSender(
            identity,
            name,
            quota,
            quota is not None,
            own.connections_here,
            by_certificate=bool(entry.certificate),
        )

    def take_post(self, request: Request, sender: KnownSender) -> None:
        """Count a post of a sender. Raises Refused if it is above a limit, or not its own."""
        if sender.by_certificate:
            self._access.check_proxy(request)
        name = sender.of(request)
        self.busiest.posted(name)
        if self._counts_places:
            self._places.take(request.sender, name, sender.connections_max)
        if sender.has_rates:
            self._quota(request, sender).take_post()

    def charge(self, request: Request, sender: KnownSender, readings: int, valid: int) -> None:
        """Count the readings of a post that was decoded; so many of them are valid."""
        self.busiest.decoded(sender.of(request), readings, valid)
        if sender.has_rates:
            self._quota(request, sender).charge(readings)

    def refused(self, request: Request) -> None:
        """Count that a request was refused, if it is known who has sent it."""
        if (plan := request.head.plan) is None:
            return
        sender: KnownSender = plan.sender
        if not sender.by_certificate or request.is_forwarded:  # else it only has the same bytes
            self.busiest.refused(sender.of(request))

    def _quota(self, request: Request, sender: KnownSender) -> Quota:
        """Return that of the token; where nobody needs one, that of the network."""
        return sender.quota or self._quotas.of(request.client.network)
