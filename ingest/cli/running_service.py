"""Requests of commands to the running service, on its admin port.

It uses http.client, which ignores the proxies of the environment: they are not for the loopback.
Blocks, at most for the time that the caller allows.
"""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException
from typing import Any

from ingest.config.folders import state_dir
from ingest.config.settings import Settings, split_address
from ingest.model.errors import StartError
from ingest.system.state_folder import ServiceInfo, existing, running_service

ANSWER_S_MAX = 10.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  bound to all interfaces: ask on the loopback


def ask(settings: Settings, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """Send one request to the service of the state folder; return its JSON answer.

    Raises StartError if no service runs there or it does not answer.
    """
    return ask_service(service_of(settings), method, path, body)[1]


def service_of(settings: Settings) -> ServiceInfo:
    """Return what the service of the state folder has published. Raises StartError if none runs."""
    folder = existing(state_dir(settings))
    service = running_service(folder)
    if service is None:
        raise StartError(
            f"no service runs on the state folder {folder} (use --state-dir for another one)"
        )
    return service


def ask_service(
    service: ServiceInfo,
    method: str,
    path: str,
    body: Any = None,
    *,
    within_s: float = ANSWER_S_MAX,
) -> tuple[int, dict[str, Any]]:
    """Send one request to this service; return the status and the JSON of its answer.

    Raises StartError if it does not answer. `within_s` limits each step, not their sum.
    """
    host, port = split_address(service.admin_listen)
    connection = HTTPConnection(_ANY.get(host, host), port, timeout=within_s)
    try:
        connection.request(
            method,
            path,
            body=None if body is None else json.dumps(body),
            headers={
                "Authorization": f"Bearer {service.token}",
                "Content-Type": "application/json",
            },
        )
        response = connection.getresponse()
        text = response.read()
    except (OSError, HTTPException) as error:
        raise StartError(
            f"the service (pid {service.pid}) does not answer at {service.admin_listen}: "
            f"{str(error) or type(error).__name__}"
        ) from error
    finally:
        connection.close()
    return response.status, _answer(response.status, text)


def _answer(status: int, text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text) if text else {}
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise StartError(f"the service answered {status}, and the answer is not JSON")
    if status >= 400 and "state" not in answer:  # /readyz has the state in its 503, too
        raise StartError(f"the service refused: {status} {answer.get('detail') or ''}".rstrip())
    return answer
