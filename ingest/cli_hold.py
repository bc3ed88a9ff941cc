"""`ingest hold`: ask the running service whether writing is on hold, or tell it to go on."""

from __future__ import annotations

import argparse
import json
from http.client import HTTPConnection, HTTPException
from typing import Any

from ingest.config import Loaded, Settings, split_address, state_dir
from ingest.errors import StartError

ANSWER_S_MAX = 10.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  bound to all: asked on loopback


def add_arguments(parser: argparse.ArgumentParser, settings_flags: argparse.ArgumentParser) -> None:
    """Add the two words."""
    words = parser.add_subparsers(dest="hold_word", metavar="show | release", required=True)
    words.add_parser("show", parents=[settings_flags], help="print the state and its reason")
    release = words.add_parser(
        "release", parents=[settings_flags], help="try to write again now, not at the next probe"
    )
    release.add_argument(
        "--dead-letter",
        action="store_true",
        help="and set the readings aside that the database refuses, however many they are",
    )


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Show or release; return 0."""
    if args.hold_word == "show":
        answer = ask(loaded.settings, "GET", "/readyz")
        print(f"state:  {answer.get('state')}")
        print(f"reason: {answer.get('reason') or '-'}")
        print(f"since:  {answer.get('since')}")
        return 0
    answer = ask(loaded.settings, "POST", "/hold/release", {"dead_letter": args.dead_letter})
    print("released: the service tries to write now (`ingest hold show` tells how it went)")
    return 0


def ask(settings: Settings, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """Send one request to the running service's admin port; return its JSON answer.

    Raises StartError if no service runs on the state folder, or it does not answer. Blocks up to
    ten seconds. Speaks HTTP by itself: the proxies of the environment are not for loopback.
    """
    from ingest.statefolder import running_service  # noqa: PLC0415

    service = running_service(state_dir(settings))
    if service is None:
        raise StartError(
            f"no service runs on the state folder {state_dir(settings)} (--state-dir chooses it)"
        )
    host, port = split_address(service.admin_listen)
    line = HTTPConnection(_ANY.get(host, host), port, timeout=ANSWER_S_MAX)
    try:
        line.request(
            method,
            path,
            body=None if body is None else json.dumps(body),
            headers={
                "Authorization": f"Bearer {service.token}",
                "Content-Type": "application/json",
            },
        )
        response = line.getresponse()
        text = response.read()
    except (OSError, HTTPException) as error:
        raise StartError(
            f"the service (pid {service.pid}) does not answer at {service.admin_listen}: "
            f"{str(error) or type(error).__name__}"
        ) from error
    finally:
        line.close()
    return _answer(response.status, text)


def _answer(status: int, text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text) if text else {}
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise StartError(f"the service answered {status} with something that is not JSON")
    refused = status >= 400 and "state" not in answer  # /readyz says 503 and yet answers
    if refused:
        raise StartError(f"the service refused: {status} {answer.get('detail') or ''}".rstrip())
    return answer
