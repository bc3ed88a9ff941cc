"""Who sends a post, and how much it has sent: the token of its head, and its quota."""

from __future__ import annotations

from typing import NamedTuple

from ingest.access.tokens import ANYBODY, Identity
from ingest.http.request import Head, Request
from ingest.model.errors import Refused
from ingest.receiver.access import Access
from ingest.receiver.busiest import Busiest
from ingest.receiver.places import Places
from ingest.receiver.quotas import Quota, Quotas


class KnownSender(NamedTuple):
    """Who sends: found once for each head. `name` is its token's; "" where nobody needs one."""

    identity: Identity
    name: str
    quota: Quota | None

    def of(self, request: Request) -> str:
        """Return the sender as in Block: the token, or the network."""
        return self.name or request.client.network


class Senders:
    """Finds the senders of posts. `quotas` and `places` are limits; None: there is none."""

    def __init__(self, access: Access, quotas: Quotas | None, places: Places | None) -> None:
        self._access = access
        self._quotas = quotas
        self._places = places
        self.busiest = Busiest()

    def find(
        self,
        head: Head,
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
        self._access.check_site(head)
        if head.method == "GET":
            self._access.check_get(head)
        identity, query = self._access.identify(head, query, in_path, in_query=in_query)
        if not identity.covers(source, form):
            raise Refused(
                "outside_scope",
                f"the token is not for the source {source!r} with the format {form!r}: "
                "`ingest token list` shows what it is for",
            )
        if identity is ANYBODY:
            return KnownSender(identity, "", None), query
        name = f"token {identity.entry.name}"
        quota = self._quotas.of(name) if self._quotas is not None else None
        return KnownSender(identity, name, quota), query

    def take_post(self, request: Request, sender: KnownSender) -> None:
        """Count a post of a sender. Raises Refused if it is above a limit."""
        name = sender.of(request)
        self.busiest.posted(name)
        if self._places is not None:
            self._places.take(request.sender, name)
        if self._quotas is not None:
            self._quota(self._quotas, request, sender).take_post()

    def charge(self, request: Request, sender: KnownSender, readings: int) -> None:
        """Count the readings of a post that was decoded."""
        self.busiest.decoded(sender.of(request), readings)
        if self._quotas is not None:
            self._quota(self._quotas, request, sender).charge(readings)

    def refused(self, request: Request) -> None:
        """Count that a request was refused, if it is known who has sent it."""
        if (plan := request.head.plan) is not None:
            self.busiest.refused(plan.sender.of(request))

    @staticmethod
    def _quota(quotas: Quotas, request: Request, sender: KnownSender) -> Quota:
        """Return that of the token; where nobody needs one, that of the network."""
        return sender.quota or quotas.of(request.client.network)
