"""Who may post to what deploy/ starts: now, and with the files of the version before tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import pytest

from ingest.app.access import with_access
from ingest.config.settings import Settings
from ingest.model.errors import StartError
from tests.support.deployment import (
    DEPLOY,
    ROLES,
    compose_services,
    environment_of,
    image_environment,
    manifest,
    service_pod,
)

NEW = ("INGEST_ACCESS", "INGEST_TOKENS_FILE")  # the version before knew neither


def examples() -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield name and environment of each example that takes posts."""
    image = image_environment()
    yield "Dockerfile", {**image, "INGEST_ACCESS": "open"}  # as its head says
    for file in ("compose.yaml", "compose.roles.yaml"):
        for name, service in compose_services(file).items():
            if name.startswith(("ingest", "gateway")):
                yield f"{file} {name}", {**image, **service["environment"]}
    yield "kubernetes", {**image, **environment_of(service_pod())}
    gateway = manifest("Deployment", "iot-ingest-gateway", ROLES)
    yield "kubernetes roles", {**image, **environment_of(gateway["spec"]["template"])}
    for unit in (DEPLOY / "iot-ingest.service", *sorted((DEPLOY / "systemd").glob("*.service"))):
        if not re.search(r"^ExecStart=.* -m ingest (serve|gateway|up)\b", unit.read_text(), re.M):
            continue
        set_here = re.findall(r"^Environment=(.*)$", unit.read_text(), re.MULTILINE)
        pairs = [each.partition("=") for line in set_here for each in line.split()]
        yield unit.name, {name: value.replace("%i", "8080") for name, _, value in pairs}


EXAMPLES = dict(examples())


def access_of(environment: Mapping[str, str]) -> str:
    """Return what a start without tokens makes of it. Raises StartError."""
    listen = environment.get("INGEST_LISTEN", "127.0.0.1:8080")
    access = environment.get("INGEST_ACCESS", "auto")
    settings = Settings(listen=listen, access=access, state_dir="/nowhere")
    return with_access(settings, listen).access


@pytest.mark.parametrize("name", EXAMPLES)
def test_upgrade_refuses_no_client_that_was_served(name: str) -> None:
    """The new version with the old file takes all posts as before; or it does not start."""
    assert access_of(EXAMPLES[name]) == "open"
    before = {each: value for each, value in EXAMPLES[name].items() if each not in NEW}
    if before.get("INGEST_LISTEN", "127.0.0.1").startswith("127.0.0.1"):
        assert access_of(before) == "open"
        return
    with pytest.raises(StartError, match=r"token new NAME.*INGEST_ACCESS=open"):
        access_of(before)


def test_all_examples_are_here() -> None:
    """Of each kind, and both Compose files."""
    kinds = {name.split()[0] for name in EXAMPLES}
    assert kinds == {
        *("Dockerfile", "compose.yaml", "compose.roles.yaml", "kubernetes"),
        *("iot-ingest.service", "iot-ingest-gateway@.service", "iot-ingest-up.service"),
    }
