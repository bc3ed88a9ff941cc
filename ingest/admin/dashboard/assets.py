"""The files of the page, and the runbook: sent with strict security headers.

The headers forbid loading anything from another address. Scripts and styles are separate files. The
page cannot turn text into markup (Trusted Types), so the name of a device cannot become markup.
The runbook is deploy/RUNBOOK.md: beside the package in a checkout and in the image, inside it in a
wheel. Not every installation has it.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import ingest
from ingest.admin.dashboard.query import parameters
from ingest.http.request_and_answer import Answer, Request, accepts_gzip
from ingest.model.errors import Refused

FOLDER = Path(__file__).parent / "page"
_PACKAGE = Path(ingest.__file__).parent
RUNBOOK = _PACKAGE / "RUNBOOK.md"
if not RUNBOOK.is_file():
    RUNBOOK = _PACKAGE.parent / "deploy" / "RUNBOOK.md"
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_PARTS = (_TYPES[".css"], _TYPES[".js"])
CSRF_PLACE = b"{{csrf}}"
_EACH = (
    b"X-Content-Type-Options: nosniff\r\n"
    b"Referrer-Policy: no-referrer\r\n"
    b"Cross-Origin-Resource-Policy: same-origin\r\n"
)
HEADERS = (
    b"Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; "
    b"img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    b"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'\r\n" + _EACH
)
NO_STORE = b"Cache-Control: no-store\r\n"
_REVALIDATE = b"Cache-Control: no-cache\r\n"


class Asset:
    """One file that is the same for all clients."""

    def __init__(self, path: Path) -> None:
        self._plain = path.read_bytes()
        self._small = gzip.compress(self._plain, mtime=0)
        self._kind = _TYPES[path.suffix]
        self._tag = f'"{blake2b(self._plain, digest_size=12).hexdigest()}"'

    async def handle(self, request: Request, _query: str, _received_s: float) -> Answer:
        """Answer a request for the file, as the handler of a route; 304 if the browser has it."""
        headers = request.headers
        # A policy is for documents: in each script and style it would be a sixth of the page.
        strict = _EACH if self._kind in _PARTS else HEADERS
        lines = strict + _REVALIDATE + f"ETag: {self._tag}\r\nVary: Accept-Encoding\r\n".encode()
        if headers.get("If-None-Match") == self._tag:
            return Answer(304, b"", self._kind, headers=lines)
        return compressed(headers, self._plain, self._kind, lines, small=self._small)


def assets() -> dict[str, Asset]:
    """Return the files of the page by URL path, without the HTML pages."""
    return {
        f"/page/{path.name}": Asset(path)
        for path in sorted(FOLDER.iterdir())
        if path.suffix in _TYPES and path.suffix != ".html"
    }


def page(name: str) -> bytes:
    """Return an HTML page; CSRF_PLACE stands where the token goes."""
    return (FOLDER / f"{name}.html").read_bytes()


def html(headers: Mapping[str, str], text: bytes, *, status: int = 200) -> Answer:
    """Answer with an HTML page that must not be cached."""
    return compressed(headers, text, _TYPES[".html"], HEADERS + NO_STORE, status=status)


def compressed(
    headers: Mapping[str, str],
    plain: bytes,
    kind: bytes,
    lines: bytes,
    *,
    small: bytes | None = None,
    status: int = 200,
) -> Answer:
    """Answer with a body, compressed by gzip if the client accepts that (`small`, if given)."""
    if not accepts_gzip(headers):
        return Answer(status, plain, kind, headers=lines)
    body = small if small is not None else gzip.compress(plain, 6)
    return Answer(status, body, kind, headers=lines + b"Content-Encoding: gzip\r\n")


async def runbook(_request: Request, query: str) -> Answer:
    """Answer `/runbook.md`, which the page `/runbook` shows. Raises Refused `not_found`."""
    parameters(query)
    if not RUNBOOK.is_file():
        raise Refused("not_found", "there is no runbook here")
    return Answer(
        200, RUNBOOK.read_bytes(), b"text/plain; charset=utf-8", headers=HEADERS + NO_STORE
    )
