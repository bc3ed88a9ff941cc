"""Tests of deploy/kubernetes: valid for the API, admitted by a strict namespace, consistent.

There is no cluster. The schemas are Kubernetes' own; this file has the rules of the pod security
level `restricted`; the commands of docs/operating.md are run with programs that only record.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from ingest.cli.main import build_parser
from ingest.config.loading import load
from ingest.config.settings import Settings
from tests.support.deployment import (
    BASE,
    DEPLOY,
    KUBERNETES,
    ROLES,
    Manifest,
    alerts,
    copy_of,
    dockerfile,
    document,
    environment_of,
    image_environment,
    manifest,
    manifests,
    program,
    restricted_faults,
    run,
    schema_pod,
    secrets_of,
    service_pod,
    uncommented,
)
from tests.support.documents import OPERATING, fences

DRAIN_S = Settings().drain_s_max
FOREIGN_KINDS = {
    "Kustomization",
    "ServiceMonitor",
    "PrometheusRule",
}  # no schema of Kubernetes' own


@pytest.mark.parametrize(
    "one",
    [
        each
        for each in (*manifests(), *(each for each in manifests(ROLES) if each not in manifests()))
        if each["kind"] not in FOREIGN_KINDS
    ],
    ids=lambda each: f"{each['kind']} {each['metadata']['name']}",
)
def test_manifest_fits_the_schema_of_kubernetes(one: Manifest) -> None:
    """The schema is strict: fields that Kubernetes does not know are errors."""
    kubernetes_validate.validate(one, "1.34", strict=True)
    spoilt = json.loads(json.dumps(one))
    spoilt["metadata"]["labells"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, "1.34", strict=True)


def test_kustomization_lists_every_file_but_the_example() -> None:
    """`kubectl apply -k` makes all of it, and no secret of an example."""
    optional = {"secret.example.yaml", "forward.yaml"}
    for folder, others in (
        (KUBERNETES, {"base"}),
        (BASE, set()),
        (ROLES, {"../base", "../../nats"}),
    ):
        listed = set(document(folder / "kustomization.yaml")["resources"])
        assert all((folder / each / "kustomization.yaml").is_file() for each in others)
        there = {each.name for each in folder.glob("*.yaml")}
        assert listed == (there | others) - {"kustomization.yaml"} - optional
        assert {
            each["metadata"].get("namespace", "iot-ingest")
            for each in manifests(folder)
            if "metadata" in each
        } == {"iot-ingest"}


def test_kustomization_names_the_image_of_every_container() -> None:
    """All images have one registry, and the version that Compose builds."""
    (image,) = document(KUBERNETES / "kustomization.yaml")["images"]
    assert document(ROLES / "kustomization.yaml")["images"] == [image]
    for pod in (service_pod(), schema_pod()):
        assert [each["image"] for each in pod["spec"]["containers"]] == [image["name"]]
    built = document(DEPLOY / "compose.yaml")["services"]["ingest"]["image"]
    assert f"{image['name']}:{image['newTag']}" == built
    assert image["newName"].endswith(f"/{image['name']}")


def test_kubernetes_objects_find_each_other() -> None:
    """Each label, port and volume that an object uses is defined by another one."""
    state = manifest("StatefulSet")
    pod = state["spec"]["template"]
    labels = pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    ports = {each["name"] for each in container["ports"]}
    for kind, name in (("Service", "iot-ingest"), ("Service", "iot-ingest-instances")):
        service = manifest(kind, name)
        assert service["spec"]["selector"].items() <= labels.items()
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= ports
    assert state["spec"]["serviceName"] == "iot-ingest-instances"
    for selector in (
        state["spec"]["selector"],
        manifest("PodDisruptionBudget")["spec"]["selector"],
        manifest("NetworkPolicy")["spec"]["podSelector"],
    ):
        assert selector["matchLabels"].items() <= labels.items()
    for rule in manifest("NetworkPolicy")["spec"]["ingress"]:
        assert {each["port"] for each in rule["ports"]} <= ports
    monitor = manifest("ServiceMonitor")["spec"]
    watched = manifest("Service", "iot-ingest-instances")
    assert monitor["selector"]["matchLabels"].items() <= watched["metadata"]["labels"].items()
    assert watched["metadata"]["labels"][monitor["jobLabel"]] == "iot-ingest"
    assert monitor["endpoints"][0]["port"] in {each["name"] for each in watched["spec"]["ports"]}
    volumes = {each["name"] for each in pod["spec"]["volumes"]}
    volumes |= {each["metadata"]["name"] for each in state["spec"]["volumeClaimTemplates"]}
    assert {each["name"] for each in container["volumeMounts"]} == volumes


def test_pod_is_what_the_image_and_the_service_need(tmp_path: Path) -> None:
    """User, folder, settings; more time to end than a drain takes; no restart for a database."""
    pod = service_pod()["spec"]
    (container,) = pod["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert mounts["state"] == image_environment()["INGEST_STATE_DIR"]
    (tmp_path / "url").write_text(
        manifest("Secret", "iot-ingest-database")["stringData"]["database_url"]
    )
    environ = environment_of(service_pod())
    load(environ={**environ, "INGEST_DATABASE_URL_FILE": str(tmp_path / "url")})
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause_s + DRAIN_S + 10
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    for name, setting in (("data", "INGEST_LISTEN"), ("admin", "INGEST_ADMIN_LISTEN")):
        assert image_environment()[setting].endswith(f":{ports[name]}")
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


@pytest.mark.parametrize("pod", [service_pod(), schema_pod()], ids=["service", "schema"])
def test_pod_runs_as_the_user_of_the_image(pod: Manifest) -> None:
    """The files that it mounts are its group's too."""
    user = pod["spec"]["securityContext"]
    uid, gid = {each.word: each.text for each in dockerfile()[-1]}["USER"].split(":")
    assert (user["runAsUser"], user["runAsGroup"], user["fsGroup"]) == (
        int(uid),
        int(gid),
        int(gid),
    )


SUFFIXES = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}
ROOM = 1.25  # a file system's own needs, and a drain may dead-letter beyond `dlq_bytes_max`


def room_wanted(settings: Settings) -> float:
    """Return how many bytes a state folder without an embedded database may come to take."""
    kept = settings.journal_bytes_max + settings.dlq_bytes_max
    return kept * ROOM + settings.disk_free_bytes_min


def test_volume_holds_all_that_the_settings_let_it_hold() -> None:
    """The volume is larger than the journal may be, else `disk_low` comes hours too early.

    Compared with the settings in force in the pod: those of the image, and its own.
    """
    spec = manifest("StatefulSet")["spec"]
    environ = environment_of(service_pod())
    environ.pop("INGEST_DATABASE_URL_FILE")  # there is no such file here
    settings = load(environ={**image_environment(), **environ}).settings
    (claim,) = spec["volumeClaimTemplates"]
    storage = claim["spec"]["resources"]["requests"]["storage"]
    volume_bytes = int(storage[:-2]) * SUFFIXES[storage[-2:]]
    assert claim["metadata"]["name"] == "state"
    assert volume_bytes >= room_wanted(settings)
    assert volume_bytes < room_wanted(replace(settings, journal_bytes_max=2**34))


# The Job that makes the table, and the two secrets


def test_job_makes_the_table_and_grants_the_role_of_the_service(tmp_path: Path) -> None:
    """The Job runs a command of ours, with the role of the service's URL."""
    (container,) = schema_pod()["spec"]["containers"]
    args = build_parser("schema").parse_args(container["args"])
    writer = urlsplit(manifest("Secret", "iot-ingest-database")["stringData"]["database_url"])
    admin = urlsplit(manifest("Secret", "iot-ingest-database-admin")["stringData"]["database_url"])
    assert (args.schema_command, args.role) == ("apply", writer.username)
    assert (admin.hostname, admin.port, admin.path) == (writer.hostname, writer.port, writer.path)
    assert admin.username != writer.username
    assert environment_of(service_pod())["INGEST_SCHEMA_APPLY"] == "false"
    (tmp_path / "url").write_text(admin.geturl())
    environ = {**image_environment(), **environment_of(schema_pod())}
    environ["INGEST_DATABASE_URL_FILE"] = str(tmp_path / "url")
    ours = {name: value for name, value in environ.items() if name.startswith("INGEST_")}
    assert load(environ=ours).settings.database_url == admin.geturl()
    job = manifest("Job", "iot-ingest-schema")["spec"]
    assert job["backoffLimit"] > 0, "the database may come later"
    assert job["ttlSecondsAfterFinished"] > 0, "one that stays cannot be applied with a new image"


def test_each_pod_mounts_its_own_secret_where_it_looks_for_it() -> None:
    """The administrator's URL is in no pod that takes posts."""
    assert secrets_of(service_pod()) == ["iot-ingest-database"]
    assert secrets_of(schema_pod()) == ["iot-ingest-database-admin"]
    for pod in (service_pod(), schema_pod()):
        (container,) = pod["spec"]["containers"]
        assert "envFrom" not in container
        assert all(each.keys() == {"name", "value"} for each in container["env"])
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert mounts.keys() >= {each["name"] for each in pod["spec"]["volumes"]}
        url_file = Path(environment_of(pod)["INGEST_DATABASE_URL_FILE"])
        assert str(url_file.parent) == mounts["database"]
        (name,) = secrets_of(pod)
        assert url_file.name in manifest("Secret", name)["stringData"]


def test_schema_pod_is_covered_by_the_network_policy_and_serves_nobody() -> None:
    """The Service must not send posts to it; the policy allows its way to the database."""
    labels = schema_pod()["metadata"]["labels"]
    policy = manifest("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ports" not in schema_pod()["spec"]["containers"][0]
    for selector in (
        manifest("Service", "iot-ingest")["spec"]["selector"],
        manifest("Service", "iot-ingest-instances")["spec"]["selector"],
        manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        manifest("StatefulSet")["spec"]["selector"]["matchLabels"],
    ):
        assert not selector.items() <= labels.items()


def test_database_outside_of_the_cluster_can_be_let_in_by_its_comment() -> None:
    """Without the # the comment is another valid rule of the same policy."""
    real = yaml.safe_load(uncommented(KUBERNETES / "networkpolicy.yaml", "- to:"))
    kubernetes_validate.validate(real, "1.34", strict=True)
    *before, outside = real["spec"]["egress"]
    assert before == manifest("NetworkPolicy")["spec"]["egress"]
    assert outside["to"][0].keys() == {"ipBlock"}
    assert outside["ports"] == before[-1]["ports"]


# Pod security


def test_namespace_admits_every_pod() -> None:
    """The namespace enforces `restricted`, and a refused pod would just never start."""
    labels = manifest("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in (service_pod(), schema_pod()):
        assert restricted_faults(pod["spec"]) == set()
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert "memory" in container["resources"]["limits"]


def _without(name: str, key: str) -> Callable[[Manifest], object]:
    def spoil(spec: Manifest) -> object:
        place = spec if name == "pod" else spec["containers"][0]
        return place["securityContext"].pop(key)

    return spoil


@pytest.mark.parametrize(
    ("fault", "spoil"),
    [
        ("allowPrivilegeEscalation", _without("container", "allowPrivilegeEscalation")),
        ("capabilities", _without("container", "capabilities")),
        ("runAsNonRoot", _without("pod", "runAsNonRoot")),
        ("seccompProfile", _without("pod", "seccompProfile")),
        ("hostNetwork", lambda spec: spec.update(hostNetwork=True)),
        ("volumes", lambda spec: spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
        ("hostPort", lambda spec: spec["containers"][0].update(ports=[{"hostPort": 80}])),
        (
            "privileged",
            lambda spec: spec["containers"][0]["securityContext"].update(privileged=True),
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_pod_that_a_strict_namespace_refuses_is_noticed(
    fault: str, spoil: Callable[[Manifest], object]
) -> None:
    """The check above can fail."""
    spec = schema_pod()["spec"]
    spoil(spec)
    assert restricted_faults(spec) == {fault}


# Alerts


def test_rules_of_the_operator_are_those_of_alerts_yml(tmp_path: Path) -> None:
    """The committed file is the output of the script; Prometheus takes both."""
    spec = manifest("PrometheusRule")["spec"]
    assert spec == document(DEPLOY / "alerts.yml")
    plain = tmp_path / "rules.yml"
    plain.write_text(yaml.safe_dump(spec))
    code, said = run(program("promtool", "prometheus"), "check", "rules", plain)
    assert code == 0, said
    assert f"{len(alerts())} rules found" in said
    copy = copy_of(tmp_path, "alerts.yml", "used_ratio > 0.8", "used_ratio > 0.8").parent
    written = copy / "kubernetes" / "base" / "prometheusrule.yaml"
    written.write_text("")
    assert run(copy / "make-prometheusrule", cwd=tmp_path) == (0, "")
    assert written.read_text() == (BASE / "prometheusrule.yaml").read_text()


def test_altered_bound_would_reach_the_operator(tmp_path: Path) -> None:
    """The comparison above can fail."""
    copy = copy_of(tmp_path, "alerts.yml", "used_ratio > 0.8", "used_ratio > 0.95").parent
    assert run(copy / "make-prometheusrule", cwd=tmp_path) == (0, "")
    assert document(copy / "kubernetes" / "base" / "prometheusrule.yaml")["spec"] == document(
        copy / "alerts.yml"
    )
    assert document(copy / "alerts.yml") != manifest("PrometheusRule")["spec"]


# The commands of docs/operating.md


def recorded(folder: Path, script: str, *programs: str) -> list[list[str]]:
    """Run a script in `folder` by a shell; these programs only record their arguments."""
    shims = folder / "shims"
    shims.mkdir()
    for name in programs:
        path = shims / name
        path.write_text(
            f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >>"{folder}/calls"; echo >>"{folder}/calls"\n'
        )
        path.chmod(0o755)
    found_first = f"PATH={shims}{os.pathsep}{os.environ['PATH']}"
    code, said = run("env", found_first, "sh", "-euc", script, cwd=folder)
    assert (code, said) == (0, "")
    calls = (folder / "calls").read_text().split("\n\n")
    return [each.splitlines() for each in calls if each]


def test_documented_commands_leave_nothing_out_and_nothing_late(tmp_path: Path) -> None:
    """The order is: image, role, namespace, secrets, all the rest, the end of the Job."""
    (script,) = (each.text for each in fences(OPERATING) if "-k deploy/kubernetes\n" in each.text)
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    for name in ("writer_url", "admin_url"):
        (tmp_path / name).write_text(f"postgresql://{name}/\n")
    given = "export ADMIN_URL=postgresql://admin@db/telemetry\n"
    calls = recorded(tmp_path, given + script, "docker", "psql", "kubectl")
    (image,) = document(tmp_path / "deploy" / "kubernetes" / "kustomization.yaml")["images"]
    registry = re.findall(r"^export REGISTRY=(\S+)$", script, re.MULTILINE)[0]
    assert image["newName"] == f"{registry}/{image['name']}"
    pulled = f"{image['newName']}:{image['newTag']}"
    assert calls[0] == ["docker", "build", "-f", "deploy/Dockerfile", "-t", pulled, "."]
    assert calls[1] == ["docker", "push", pulled]
    role = urlsplit(
        manifest("Secret", "iot-ingest-database")["stringData"]["database_url"]
    ).username
    assert calls[2][:3] == ["psql", "postgresql://admin@db/telemetry", "-c"]
    assert calls[2][3].startswith(f"create role {role} login ")
    namespace, *secrets, everything, wait, _rollout = (" ".join(each) for each in calls[3:])
    assert namespace == "kubectl apply -f deploy/kubernetes/base/namespace.yaml"
    name = manifest("Namespace")["metadata"]["name"]
    made = [each.split(f"kubectl -n {name} create secret generic ")[1].split() for each in secrets]
    wanted = [secrets_of(service_pod()), secrets_of(schema_pod())]
    assert [each[:1] for each in made] == wanted
    for (_secret, option), pod in zip(made, (service_pod(), schema_pod()), strict=True):
        key, _, file = option.removeprefix("--from-file=").partition("=")
        assert Path(environment_of(pod)["INGEST_DATABASE_URL_FILE"]).name == key
        assert (tmp_path / file).is_file()
    assert everything == "kubectl apply -k deploy/kubernetes"
    assert wait.startswith(f"kubectl -n {name} wait --for=condition=complete ")
    assert wait.endswith(f" job/{manifest('Job', 'iot-ingest-schema')['metadata']['name']}")


def test_documents_name_jobs_and_sets_that_exist() -> None:
    """Commands within sentences name existing objects, too."""
    names = {
        f"{each['kind'].lower()}/{each['metadata']['name']}"
        for each in (*manifests(), *manifests(ROLES))
        if "metadata" in each
    }
    named = re.findall(r"\b(?:job|statefulset)[/ ]iot-ingest[\w-]*", OPERATING)
    assert len(named) >= 4
    assert {each.replace(" ", "/") for each in named} <= names
