"""The data port: POST /v1/readings, line protocol, mapped sources, the probes, and /openapi.json.

posts.py has the way of a post from its request to its answer, and pages/ what is said differently.
/openapi.json is the file beside this one, with what only this service knows: its limits, and a path
for each of its sources. `python -m tests.printing.openapi` writes the file; there the path SOURCE
stands for all sources.
Does not: know the database, or the buffer.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from ingest.formats.post import Decoded, Rules
from ingest.http.clients import Proxies
from ingest.http.request_and_answer import Answer, Reply, Request
from ingest.http.rounds import BodyLimits, PlainBodies
from ingest.http.routes import READ, OnRefused, Pattern, Port, Route, probes
from ingest.http.tls import Certificate
from ingest.model.errors import Refused
from ingest.model.ledger import Ledger
from ingest.model.ports import Admission, Database, DeadLetters, Inlet
from ingest.receiver.access import Access
from ingest.receiver.keeping import Keeping
from ingest.receiver.outcomes import AckWaits
from ingest.receiver.pages import lines, mapped
from ingest.receiver.pages.json import Readings
from ingest.receiver.pages.lines import SET_UP_CALLS, stubs
from ingest.receiver.posts import Posts
from ingest.receiver.senders import Senders
from ingest.system.logs import get_logger

PATH = "/openapi.json"
FILE = Path(__file__).with_name("openapi.json")
OF_READINGS, OF_LINES, OF_SOURCES = "readings", "lines", "sources"  # tags of limited operations
SOURCE = "/v1/in/{source}"
_HOLE = re.compile(r"\{(\w+)\}")
_SEPARATORS = re.compile(r"[^a-zA-Z0-9]+")


class Endpoint:
    """The data port.

    `levels` are the acknowledgements that the buffer gives without the database, best first;
    `committed` is always available. Raises ConfigError if `ack_default` is none of them.
    `on_decoded` is called with every decoded post, kept or not. It must be quick and must not fail.
    `connection_s_max`, `certificate`, `proxies`: see Connections.
    """

    def __init__(
        self,
        *,
        rules: Rules,
        plain_bodies: PlainBodies,
        line_options: lines.LineOptions,
        source_options: mapped.SourceOptions,
        connections_max: int,
        header_s_max: float,
        keepalive_s_max: float,
        ack_default: str,
        ack_wait_s_max: float,
        inlet: Inlet,
        dead_letters: DeadLetters,
        ledger: Ledger,
        access: Access,
        senders: Senders,
        admission: Admission,
        database: Database,
        levels: tuple[str, ...],
        health: Callable[[], tuple[int, bytes]],
        on_refused: OnRefused,
        on_decoded: Callable[[Decoded], None] | None = None,
        connection_s_max: float = math.inf,
        certificate: Certificate | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        self.senders = senders
        self.certificate, self._plain_bodies = certificate, plain_bodies
        self._on_refused, self._access = on_refused, access
        outcomes = AckWaits(database, ack_wait_s_max, connections_max=connections_max)
        parts = (inlet, dead_letters, ledger, database, outcomes)
        self._keeping = Keeping(*parts, on_refused=self._refused)
        posts = self.posts = Posts(
            rules=rules,
            plain_bodies=plain_bodies,
            senders=senders,
            admission=admission,
            keeping=self._keeping,
            ledger=ledger,
            on_decoded=on_decoded,
            levels=levels,
            ack_default=ack_default,
        )
        pages, patterns = self._pages(posts, line_options, source_options, health)
        self.port = Port(
            pages,
            ledger,
            patterns=[*(patterns or [mapped.NO_SOURCE]), SET_UP_CALLS],
            flag="--listen",
            connections_max=connections_max,
            header_s_max=header_s_max,
            keepalive_s_max=keepalive_s_max,
            connection_s_max=connection_s_max,
            certificate=certificate,
            proxies=proxies,
            plain_bodies=plain_bodies,
            on_refused=self._refused,
        )
        self._log = get_logger("endpoint")

    def _pages(
        self,
        posts: Posts,
        of_lines: lines.LineOptions,
        of_sources: mapped.SourceOptions,
        health: Callable[[], tuple[int, bytes]],
    ) -> tuple[dict[str, Route], list[Pattern]]:
        pages = {
            **Readings(posts).pages(),
            **lines.pages(posts, of_lines),
            **self._guarded({**stubs(self._plain_bodies, health), **probes(health)}),
        }
        patterns = mapped.patterns(posts, of_sources, {*pages, PATH})
        body, rows_max = size(self._plain_bodies.limits), posts.rules.post_rows_max
        limits = {
            OF_READINGS: f"A post has at most {rows_max:,} readings, {body}.",
            OF_LINES: f"A post has at most {of_lines.rows_max:,} fields, {size(of_lines.bodies)}.",
            OF_SOURCES: f"A post has at most {body}.",
        }
        shown = page_of_document(limits, patterns)
        return pages | self._guarded({PATH: shown}), patterns

    def _refused(self, request: Request | None, refused: Refused) -> None:
        if request is not None:
            self.senders.refused(request)
        self._on_refused(request, refused)

    @property
    def needs_token(self) -> bool:
        """Whether only who has a token may post."""
        return not self._access.is_open

    async def start(
        self,
        host: str,
        port: int,
        given: Sequence[socket.socket] = (),
        accepts: Callable[[], bool] = lambda: True,
    ) -> str:
        """Listen, or serve at the sockets that are `given`; return the real HOST:PORT.

        It accepts from these once `accepts` says so. Raises StartError that names --listen or
        --access.
        """
        address = await self.port.start(host, port, given, accepts)
        self._access.bound(address)
        return address

    async def step_down(self, *, idle_s: float, timeout_s: float) -> None:
        """Leave the socket to the next process. Posts are taken as before, and not refused.

        It returns when no connection is left, or after `timeout_s`. Idle ones end after `idle_s`.
        Then `finish` and `close`.
        """
        await self.port.connections.step_down(idle_s=idle_s, timeout_s=timeout_s)

    async def finish(self, timeout_s: float) -> None:
        """Wait until no post is in work, at most `timeout_s`. Admission must refuse new ones."""
        left = await self._keeping.finish(timeout_s)
        if left:
            self._log.warning("posts_left_inside", count=left)

    async def close(self) -> None:
        """Close the port. Dead letters that are being written are finished first. Repeatable."""
        await self.port.connections.close()
        await self._keeping.close()
        self._plain_bodies.close()

    def _guarded(self, pages: dict[str, Route]) -> dict[str, Route]:
        """Return pages that need no token, and that no page of another site may ask for."""

        def guarded(page: Route) -> Route:
            def answer(request: Request, query: str, received_s: float) -> Reply:
                self._access.check_site(request.head)
                return page.answer(request, query, received_s)

            return page._replace(answer=answer)

        return {path: guarded(page) for path, page in pages.items()}


def operation_id(method: str, path: str) -> str:
    """Return a name that no other operation has; programs that generate clients use it."""
    return method.lower() + "".join(map(str.title, _SEPARATORS.split(path.strip("/"))))


def in_path(path: str) -> list[dict[str, Any]]:
    """Return the parameters for the parts of a path that are in braces."""
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _HOLE.findall(path)
    ]


def size(bodies: BodyLimits) -> str:
    """Return how large a body may be, in words."""
    return f"{bodies[0]:,} bytes as sent, and {bodies[1]:,} bytes decompressed"


def page_of_document(limits: Mapping[str, str], patterns: Iterable[Pattern]) -> Route:
    """Return the page. `limits` are sentences by tag, `patterns` those of sources."""
    document = orjson.loads(FILE.read_bytes())
    paths: dict[str, dict[str, Any]] = document["paths"]
    model = paths.pop(SOURCE)
    for each in patterns:
        paths[each.label] = {
            method.lower(): _of_source(model[method.lower()], method, each.label)
            for method in each.route.methods
        }
    for operation in (each for item in paths.values() for each in item.values()):
        sentence = limits.get(operation["tags"][0])
        if sentence:
            operation["description"] = f"{sentence} {operation['description']}"
    answer = Answer(200, orjson.dumps(document))

    def show(_request: Request, _query: str, _received_s: float) -> Answer:
        return answer

    return Route(READ, show)


def _of_source(model: Mapping[str, Any], method: str, path: str) -> dict[str, Any]:
    headers = [each for each in model["parameters"] if each["in"] == "header"]
    named = {"operationId": operation_id(method, path), "parameters": [*in_path(path), *headers]}
    return {**model, **named}
