"""Who sends a post; how much it has sent, and how much it may send; and the last refused posts.

A sender is a token, by its name, or, where nobody needs one, a network. It has one account, which
is found once a post.
It may have a limit of readings and of posts a second, each with a burst, and of connections. A post
is charged after it was read, since only then its readings are known. So a sender may go into debt
by one post; its next posts are refused until the debt is paid. A connection counts for the sender
of its last post; one that has not posted counts for nobody: the limits of the port hold for it.
Promises: a refused post costs nothing but its refusal. The memory is bounded: of networks, those
that have not sent for long are forgotten, with all that they had used.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple

from ingest.access.token_lines import TokenEntry
from ingest.access.tokens import ANYBODY, Identity
from ingest.http.connection import Connection
from ingest.http.request_and_answer import HeldPlace, Request
from ingest.model.causes import Cause, Trouble
from ingest.model.errors import Refused
from ingest.model.ledger import POSTS, READINGS, REFUSED, UNNAMED, Ledger, Metric, Metrics
from ingest.receiver.access import Access
from ingest.system.clock import monotonic_s, rfc3339, unix_us
from ingest.system.words import counted

SENDER_NOT_STORED = "sender_not_stored"
CAUSES = {
    SENDER_NOT_STORED: Cause(
        "of a sender no reading is stored",
        "All become dead letters. The sender gets 2xx, and does not know it. `{run} dlq show "
        "--where reason=invalid` shows them, with a code. no_device, of line protocol: add the tag "
        "that names the device to line_device_tags, or let the sender write one (Telegraf: no "
        "omit_hostname). After a restart with that setting, `{run} dlq replay --where "
        "reason=invalid` stores them.",
        "ingestsendernotstored",
        rank=190,
    ),
}
NETWORKS_MAX = 50_000  # and as many older ones; some 400 bytes each
WAIT_S_MAX = 30 * 86_400.0  # that is told: a tiny rate makes it infinite, and no header says that
AGAIN_S = 5.0  # after which a sender with too many connections should come again
NOT_STORED_MAX = 100  # senders
READINGS_MIN, LASTS_S_MIN = 10, 60.0  # less may be one bad post, or somebody who tries something
FORGET_S = 300.0
# Of refused posts:
POSTS_MAX = 100
POSTS_OF_PEER_MAX = 20  # so that one noisy device does not drive out those of the others
BODY_BYTES_MAX = 200
COUNTS_MAX = 4_096  # counts by address and code; the oldest ones are forgotten


class Rates(NamedTuple):
    """Of one sender in this process. 0: no limit. A burst is `burst_s` of either rate."""

    readings_per_s: float = 0.0
    posts_per_s: float = 0.0
    burst_s: float = 10.0

    @property
    def any(self) -> bool:
        """Whether there is a limit."""
        return self.readings_per_s > 0 or self.posts_per_s > 0


class SenderLimits(NamedTuple):
    """What one sender may send to all processes together. 0: no limit."""

    rates: Rates = Rates()
    connections_max: int = 0
    processes: int = 1

    @property
    def rates_here(self) -> Rates:
        """The rates of one process."""
        readings_per_s, posts_per_s, burst_s = self.rates
        return Rates(readings_per_s / self.processes, posts_per_s / self.processes, burst_s)

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


class Account:
    """One sender: what it has sent, and what it has left. That grows with time, up to a burst.

    `sender` is that of Block. `counts` are its counters in the ledger. `is_stored`: a reading of
    its last posts was valid.
    """

    __slots__ = (
        *("_at_s", "_posts", "_posts_max", "_rates", "_readings", "_readings_max"),
        *("counts", "has_rates", "is_stored", "sender"),
    )

    def __init__(self, sender: str, rates: Rates, counts: list[int]) -> None:
        self.sender = sender
        self.counts = counts
        self.is_stored = True
        self.has_rates = rates.any
        self._rates = rates
        self._readings = self._readings_max = rates.readings_per_s * rates.burst_s
        # A rate below one post a burst would else never allow one.
        self._posts_max = max(1.0, rates.posts_per_s * rates.burst_s)
        self._posts = self._posts_max
        self._at_s = monotonic_s()

    def take_post(self) -> None:
        """Charge a post. Raises Refused, with the time after which one may come."""
        now_s = monotonic_s()
        passed_s, self._at_s = now_s - self._at_s, now_s
        rates = self._rates
        wait_s = 0.0
        if rates.readings_per_s:
            self._readings += passed_s * rates.readings_per_s
            self._readings = min(self._readings, self._readings_max)
            wait_s = -self._readings / rates.readings_per_s
        if rates.posts_per_s:
            self._posts += passed_s * rates.posts_per_s
            self._posts = min(self._posts, self._posts_max)
            if self._posts < 1.0:
                wait_s = max(wait_s, (1.0 - self._posts) / rates.posts_per_s)
        if wait_s > 0:
            raise Refused(
                "too_fast",
                "this sender has sent more than it may; the post is not kept",
                retry_after_s=min(wait_s, WAIT_S_MAX),
            )
        self._posts -= 1.0

    def charge(self, readings: int, valid: int) -> None:
        """Count and charge the readings of a post that was read, kept or not."""
        self.counts[READINGS] += readings
        if valid:
            self.is_stored = True
        if self.has_rates:
            self._readings -= readings


class KnownSender(NamedTuple):
    """Who sends: found once for each token. `account` is None where nobody needs one.

    `by_certificate`: a trusted proxy must bring each of its requests.
    """

    identity: Identity
    account: Account | None
    connections_max: int
    by_certificate: bool = False


class Senders:
    """Finds the senders of posts. `limits` are those of a sender that has none of its own."""

    def __init__(
        self,
        access: Access,
        limits: SenderLimits,
        ledger: Ledger,
    ) -> None:
        self._access = access
        self._limits, self._rates = limits, limits.rates_here
        self._ledger = ledger
        # Of tokens, by name and rates: two of one name have one account if they have the same.
        self._tokens: dict[tuple[str, Rates], Account] = {}
        # Of networks. When there are more, these become the older ones, which are kept too.
        self._networks: dict[str, Account] = {}
        self._older: dict[str, Account] = {}
        self._connections: dict[str, int] = {}  # that each sender uses
        self._counts_connections = limits.connections_max > 0
        # Of whom nothing was stored: since when, until when, how many readings.
        self._not_stored: dict[Account, tuple[float, float, int]] = {}

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

    def find_by(self, authorization: str, source: str, form: str) -> KnownSender | None:
        """Return the sender if this header alone says who it is, and it may send this form."""
        identity = self._access.identity_in(authorization)
        if identity is None or not identity.covers(source, form):
            return None
        known: KnownSender | None = identity.known
        return known or self._known(identity)

    def _known(self, identity: Identity) -> KnownSender:
        limits, entry = self._limits, identity.entry
        if identity is ANYBODY:
            return KnownSender(identity, None, limits.connections_here)
        name, own = f"token {entry.name}", limits.of(entry)
        key = (name, own.rates_here)
        if key not in self._tokens:
            self._tokens[key] = self._made(*key)
        if own.connections_max:  # from now on those of others count, too: they may change hands
            self._counts_connections = True
        is_by_certificate = bool(entry.certificate)
        account = self._tokens[key]
        known = KnownSender(identity, account, own.connections_here, is_by_certificate)
        identity.known = known
        return known

    def _made(self, sender: str, rates: Rates) -> Account:
        return Account(sender, rates, self._ledger.sent_by(sender))

    def _of_network(self, network: str) -> Account:
        account = self._networks.get(network)
        if account is None:
            account = self._older.get(network) or self._made(network, self._rates)
            if len(self._networks) >= NETWORKS_MAX:
                self._older, self._networks = self._networks, {}
            self._networks[network] = account
        return account

    def take_post(self, request: Request, sender: KnownSender) -> None:
        """Count a post; note the account of its sender in `request.account`.

        Raises Refused if it is above a limit, or not its own.
        """
        if sender.by_certificate:
            self._access.check_proxy(request)
        account = sender.account
        if account is None:
            network = request.client.network
            account = self._networks.get(network) or self._of_network(network)
        request.account = account
        account.counts[POSTS] += 1
        if self._counts_connections:
            self._take_place(request.sender, account.sender, sender.connections_max)
        if account.has_rates:
            account.take_post()

    def refused(self, request: Request) -> None:
        """Count that a request was refused, if it is known who has sent it."""
        if (plan := request.head.plan) is None:
            return
        sender: KnownSender = plan.sender
        if not sender.by_certificate or request.is_forwarded:  # else it only has the same bytes
            account = sender.account or self._of_network(request.client.network)
            account.counts[REFUSED] += 1

    # Connections

    def _take_place(self, connection: Connection, sender: str, connections_max: int) -> None:
        """Count a connection for the sender of a post. Raises Refused if it has too many.

        `connections_max` 0: it may have any number.
        """
        place = connection.place
        if place.sender == sender:
            return
        place.left()
        if connection.valve.transport is None:
            return  # it is gone: nobody would give the place back
        used = self._connections.get(sender, 0)
        if connections_max and used >= connections_max:
            raise Refused(
                "too_many_connections",
                f"this sender uses {used} connections, and may not use more; nothing is kept",
                retry_after_s=AGAIN_S,
            )
        self._connections[sender] = used + 1
        connection.place = HeldPlace(sender, self._connections)

    # Of whom nothing is stored

    def nothing_stored(self, account: Account, readings: int) -> None:
        """Count a post that was kept and has no valid reading, only such as are dead letters.

        Its sender got 2xx, so only the operator can notice: of line protocol without a device all
        lines become dead letters (Telegraf without the tag `host`, for example).
        """
        now_s, runs = monotonic_s(), self._not_stored
        since_s, until_s, before = runs.pop(account, (now_s, now_s, 0))
        if account.is_stored or now_s - until_s > FORGET_S:
            since_s, before = now_s, 0
        account.is_stored = False
        if len(runs) >= NOT_STORED_MAX:
            for each, (_, until_s, _) in list(runs.items()):
                if each.is_stored or now_s - until_s > FORGET_S:
                    del runs[each]
        if len(runs) < NOT_STORED_MAX:
            runs[account] = (since_s, now_s, before + readings)

    def not_stored(self) -> Trouble:
        """Return of whom nothing was stored: of several the one who has sent most."""
        now_s = monotonic_s()
        found = [
            (readings, account.sender)
            for account, (since_s, until_s, readings) in self._not_stored.items()
            if not account.is_stored
            and readings >= READINGS_MIN
            and until_s - since_s >= LASTS_S_MIN
            and now_s - until_s < FORGET_S
        ]
        if not found:
            return Trouble()
        readings, sender = max(found)
        words = f"of {counted(len(found), 'sender')} no reading is stored"
        return Trouble(SENDER_NOT_STORED, words, f"{sender or UNNAMED}, {readings:,} readings")


METRICS: Metrics[Senders] = (
    Metric(
        "sender_not_stored",
        "1 while all readings of a sender become dead letters.",
        lambda it: bool(it.not_stored().cause),
    ),
)


class _Post(NamedTuple):
    at_us: int
    peer: str
    sender: str  # the network of the peer
    refused: tuple[str, str | None, str | None]  # its code, that of the first item, its field
    body: bytes
    so_far: int  # so many posts of this sender were refused with this code so far


class RefusedPosts:
    """Counts the refused posts of one process, and keeps the last ones: so their sender is found.

    Promises: at most POSTS_MAX posts, POSTS_OF_PEER_MAX of one address (IPv6: of a /64), of each at
    most BODY_BYTES_MAX bytes of the body, in memory only. Never headers, query or path: these may
    have secrets.
    Does not: keep posts that are refused with a 5xx. Their cause is the service's own and is on
    /readyz; one second of them would drive out all others.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._posts: deque[_Post] = deque()
        self._counts: dict[tuple[str, str], int] = {}

    def refused(self, request: Request | None, refused: Refused) -> None:
        """Count a refused request; keep it in place of an older one, if its sender is at fault.

        http.routes.Port calls it. `request` is None if the bytes were not valid HTTP.
        """
        self._ledger.posts_refused[refused.code] += 1
        if request is None or refused.status >= 500:
            return
        body = refused.body_start[:BODY_BYTES_MAX]
        if not body:  # refused before it was read
            body = request.body_start(BODY_BYTES_MAX)
        client = request.client
        self._make_place(client.network)
        count = self._count(client.network, refused.code)
        named = _named(refused)
        self._posts.append(_Post(unix_us(), client.address, client.network, named, body, count))

    def _count(self, sender: str, code: str) -> int:
        counts = self._counts
        count = counts.get((sender, code), 0) + 1
        if count == 1 and len(counts) >= COUNTS_MAX:
            del counts[next(iter(counts))]
        counts[sender, code] = count
        return count

    def _make_place(self, sender: str) -> None:
        """Remove the oldest post: of this sender if it has its share, else of all."""
        own = [post for post in self._posts if post.sender == sender]
        if len(own) >= POSTS_OF_PEER_MAX:
            self._posts.remove(own[0])
        elif len(self._posts) >= POSTS_MAX:
            self._posts.popleft()

    def listed(self) -> list[dict[str, Any]]:
        """Return the posts for JSON, newest first. Bytes that are not UTF-8 become U+FFFD."""
        return [
            {
                "at": rfc3339(post.at_us),
                "peer": post.peer,
                **dict(zip(("code", "item_code", "field"), post.refused, strict=True)),
                "count": post.so_far,
                "body": post.body.decode("utf-8", "replace"),
            }
            for post in reversed(self._posts)
        ]


def _named(refused: Refused) -> tuple[str, str | None, str | None]:
    errors: Any = refused.fields.get("errors") or ({},)
    return refused.code, errors[0].get("code"), errors[0].get("field")
