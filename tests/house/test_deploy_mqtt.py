"""Tests of the files of deploy/ for `ingest mqtt`: Compose, Prometheus and Kubernetes.

What holds for every file is in test_deploy.py, the unit of systemd in test_deploy_roles.py.
"""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from ingest.cli.main import build_parser
from ingest.config.loading import load
from ingest.config.settings import Settings
from tests.support.deployment import (
    DEPLOY,
    KUBERNETES,
    REPOSITORY,
    ROLES,
    Manifest,
    compose_services,
    document,
    documents,
    image_environment,
    manifest,
    restricted_faults,
    shown_in_head,
)

FOLDER = KUBERNETES / "mqtt"
OBJECTS: list[Manifest] = [
    each
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for each in documents(path)
]
SETTINGS = Settings()


def one(kind: str, name: str = "iot-ingest-mqtt") -> Manifest:
    """Return one object of the folder."""
    (found,) = (e for e in OBJECTS if e["kind"] == kind and e["metadata"]["name"] == name)
    return found


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


@pytest.mark.parametrize("found", OBJECTS, ids=lambda e: f"{e['kind']} {e['metadata']['name']}")
def test_manifest_fits_the_schema_of_kubernetes(found: Manifest) -> None:
    """The schema is strict; ServiceMonitor is not of Kubernetes itself."""
    assert found["metadata"]["namespace"] == "iot-ingest"
    if found["kind"] != "ServiceMonitor":
        kubernetes_validate.validate(found, "1.34", strict=True)


def test_kustomization_lists_every_file_and_the_usual_image() -> None:
    """Its commands make the secret that the pod mounts, with the files that it reads."""
    made = document(FOLDER / "kustomization.yaml")
    files = {each.name for each in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(made["resources"]) == files
    assert made["images"] == document(KUBERNETES / "kustomization.yaml")["images"]
    secret, apply, status = shown_in_head(FOLDER / "kustomization.yaml")
    pod = one("StatefulSet")["spec"]["template"]["spec"]
    flags = arguments(pod["containers"][0]["args"])
    (mounted,) = (each for each in pod["volumes"] if "secret" in each)
    assert mounted["secret"]["secretName"] in secret
    keys = {each.partition("=")[2] for each in secret if each.startswith("--from-file=")}
    assert {flags.mqtt_password_file, flags.token_file} == {f"/run/secrets/mqtt/{k}" for k in keys}
    assert (REPOSITORY / apply[-1] / "kustomization.yaml").is_file()
    assert status[-1] == "statefulset/iot-ingest-mqtt"


def test_pod_is_admitted_and_posts_to_the_service() -> None:
    """One pod, since its name is its client id; a restart only if the process is frozen."""
    state = one("StatefulSet")["spec"]
    pod = state["template"]["spec"]
    (container,) = pod["containers"]
    assert state["replicas"] == 1
    assert restricted_faults(pod) == set()
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["automountServiceAccountToken"] is False
    assert "memory" in container["resources"]["limits"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert "readinessProbe" not in container
    assert pod["terminationGracePeriodSeconds"] > 2 * SETTINGS.drain_s_max
    flags = arguments(container["args"])
    service = manifest("Service")
    assert (
        flags.url == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    )
    assert flags.mqtt_url.startswith("mqtts://")
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert mounts["state"] == image_environment()["INGEST_STATE_DIR"]
    assert mounts.keys() == {
        *(each["name"] for each in pod["volumes"]),
        *(each["metadata"]["name"] for each in state["volumeClaimTemplates"]),
    }
    (claim,) = state["volumeClaimTemplates"]
    storage = claim["spec"]["resources"]["requests"]["storage"]
    assert int(storage.removesuffix("Gi")) * 1024**3 > 1.25 * SETTINGS.dlq_bytes_max
    load(environ=image_environment())


def test_objects_find_each_other_and_no_post_is_led_to_the_client() -> None:
    """Both installations let it in; only its own Service means its pod; Prometheus finds it."""
    labels = one("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert one("Service")["spec"]["selector"].items() <= labels.items()
    assert one("Service")["metadata"]["name"] == one("StatefulSet")["spec"]["serviceName"]
    monitor = one("ServiceMonitor")["spec"]
    watched = one("Service")["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= watched.items()
    assert watched[monitor["jobLabel"]] == "iot-ingest"
    out, back = one("NetworkPolicy"), one("NetworkPolicy", "iot-ingest-from-mqtt")
    assert out["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    (peer,) = back["spec"]["ingress"][0]["from"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    (term,) = back["spec"]["podSelector"]["matchExpressions"]
    (to,) = out["spec"]["egress"][0]["to"]
    assert to["podSelector"]["matchExpressions"] == [term]
    takers = [manifest("StatefulSet"), manifest("Deployment", "iot-ingest-gateway", ROLES)]
    for taker in takers:
        template = taker["spec"]["template"]
        assert template["metadata"]["labels"][term["key"]] in term["values"]
        assert "data" in {each["name"] for each in template["spec"]["containers"][0]["ports"]}
    for kind, name, folder in (
        ("Service", "iot-ingest", KUBERNETES),
        ("Service", "iot-ingest-instances", KUBERNETES),
        ("Service", "iot-ingest", ROLES),
        ("Service", "iot-ingest-roles", ROLES),
    ):
        selector = manifest(kind, name, folder)["spec"]["selector"]
        assert not selector.items() <= labels.items(), (name, folder)
    for folder, name in ((KUBERNETES, "iot-ingest"), (ROLES, "iot-ingest-roles")):
        policy = manifest("NetworkPolicy", name, folder)["spec"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items(), "DNS and scrapes"
