"""Tests of the files of deploy/ for `ingest mqtt`: Compose and Prometheus.

What holds for every file is in test_deploy.py, the unit of systemd in test_deploy_roles.py.
"""

from __future__ import annotations

import re
from typing import Any

from ingest.cli.main import build_parser
from ingest.config.settings import Settings
from tests.support.deployment import (
    DEPLOY,
    compose_services,
    document,
    image_environment,
    shown_in_head,
)

SETTINGS = Settings()


def arguments(words: list[str]) -> Any:
    """Return the flags of a command as the program reads them."""
    return build_parser(words[0]).parse_args(words)


def test_compose_has_all_of_compose_yaml_and_a_client_with_its_password() -> None:
    """The command is ours; it reaches the service; its session has time to end."""
    services = compose_services("compose.mqtt.yaml")
    usual = compose_services("compose.yaml")
    assert services.keys() - usual.keys() == {"mqtt"}
    assert {name for name, each in usual.items() if "profiles" not in each} <= services.keys()
    service = services["mqtt"]
    words = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", each) for each in service["command"]]
    flags = arguments(words)
    assert flags.mqtt_password_file == f"/run/secrets/{service['secrets'][0]}"
    assert flags.url == f"http://ingest:{SETTINGS.listen.rpartition(':')[2]}"
    assert flags.plain_http
    assert {"fleet", "watching"} == set(service["networks"])
    assert "fleet" in services["ingest"]["networks"]
    assert int(service["stop_grace_period"].removesuffix("s")) > 2 * SETTINGS.drain_s_max
    (volume,) = service["volumes"]
    assert volume.partition(":")[2] == image_environment()["INGEST_STATE_DIR"]
    steps = shown_in_head(DEPLOY / "compose.mqtt.yaml")
    assert "secrets/mqtt_password" in steps[1], "it is made before the start"
    assert [each.split("=")[0] for each in steps[2][:2]] == ["MQTT_URL", "MQTT_TOPIC"]
    assert "compose.mqtt.yaml" in steps[2]
    arguments(steps[3][steps[3].index("ingest", 5) + 1 :])


def test_prometheus_of_compose_scrapes_the_client_as_the_service() -> None:
    """The configuration is that of compose.yaml, with one more target of the same job."""
    whole = document(DEPLOY / "prometheus.yml")
    own = document(DEPLOY / "prometheus.mqtt.yml")
    (job,) = whole["scrape_configs"]
    admin_port = image_environment()["INGEST_ADMIN_LISTEN"].rpartition(":")[2]
    job["static_configs"][0]["targets"].append(f"mqtt:{admin_port}")
    assert own == whole
    mounts = compose_services("compose.mqtt.yaml")["prometheus"]["volumes"]
    assert "./prometheus.mqtt.yml:/etc/prometheus/prometheus.yml:ro" in mounts
