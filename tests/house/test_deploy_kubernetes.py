"""Tests of deploy/kubernetes: valid for the API, admitted by a strict namespace, consistent.

The schemas are Kubernetes' own; this file has the rules of the pod security level `restricted`; the
commands of the documents are run with programs that only record. `./run containers` runs the pods.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from ingest.broker.roles import ROLES as BROKER_ROLES
from ingest.cli.main import build_parser
from ingest.config.broker_url import split_broker_url
from ingest.config.loading import load
from ingest.config.settings import Settings
from tests.support.deployment import (
    BASE,
    DEPLOY,
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
    named,
    program,
    restricted_faults,
    run,
    schema_pod,
    secrets_of,
    service_pod,
    uncommented,
)
from tests.support.documents import DOCUMENTS, OPERATING, fences

DRAIN_S = Settings().drain_s_max
ALL = {named(each): each for each in (*manifests(), *manifests(ROLES))}
WITH_PODS = {"StatefulSet", "Deployment", "Job"}
PODS = {name: each["spec"]["template"] for (kind, name), each in ALL.items() if kind in WITH_PODS}
NATS_HOSTS = [f"nats-{number}.nats" for number in range(3)]
OF_ROLES = {"iot-ingest-stream", "iot-ingest-gateway", "iot-ingest-writer"}
NATS = DEPLOY / "nats"


def container_of(name: str) -> Manifest:
    """Return the container of the pods of this name."""
    (found,) = PODS[name]["spec"]["containers"]
    return dict(found)


def selected_pods(selector: Manifest) -> set[str]:
    """Return the names of the pods that a selector means."""
    exact = selector.get("matchLabels", selector if "matchExpressions" not in selector else {})
    some = selector.get("matchExpressions", ())
    assert all(each["operator"] == "In" for each in some)
    return {
        name
        for name, labels in ((name, pod["metadata"]["labels"]) for name, pod in PODS.items())
        if exact.items() <= labels.items()
        and all(labels.get(each["key"]) in each["values"] for each in some)
    }


@pytest.mark.parametrize(
    "one", [e for e in ALL.values() if e["kind"] != "ServiceMonitor"], ids=lambda e: named(e)[1]
)
def test_manifest_fits_the_schema_of_kubernetes(one: Manifest) -> None:
    """The schema is strict: fields that Kubernetes does not know are errors."""
    kubernetes_validate.validate(one, "1.34", strict=True)
    assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "iot-ingest"
    spoilt = json.loads(json.dumps(one))
    spoilt["metadata"]["labells"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, "1.34", strict=True)


@pytest.mark.parametrize(("folder", "more"), [(BASE, set()), (ROLES, {"../base", "../../nats"})])
def test_kustomization_lists_every_file_and_one_image(folder: Path, more: set[str]) -> None:
    """All containers have one image, of the version that Compose builds."""
    made = document(folder / "kustomization.yaml")
    files = {each.name for each in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(made["resources"]) == files | more
    (image,) = made["images"]
    assert {container_of(each)["image"] for each in PODS} == {image["name"]}
    built = document(DEPLOY / "compose.yaml")["services"]["ingest"]["image"]
    assert f"{image['name']}:{image['newTag']}" == built
    assert image["newName"] == f"registry.example/{image['name']}"


def test_kubectl_makes_the_objects_that_are_tested_here() -> None:
    """With the patches and the images of each folder, and the configuration of nats-server."""
    kubectl = program("kubectl", "kubernetes-client")
    for folder in (BASE, ROLES):
        code, said = run(kubectl, "kustomize", folder)
        assert code == 0, said
        made = {named(each): each for each in yaml.safe_load_all(said)}
        configs = {each for each in made if each[0] == "ConfigMap"}
        assert made.keys() - configs == {named(each) for each in manifests(folder)}
        assert len(configs) == (folder == ROLES)
        for kind in ("Service", "NetworkPolicy"):
            assert made[kind, "iot-ingest"] == manifest(kind, folder=folder)
        images = set(re.findall(r"image: (\S+)", said))
        assert images == {"registry.example/iot-ingest:1.0.0"}


# Pods


@pytest.mark.parametrize("name", PODS)
def test_strict_namespace_admits_the_pod_and_a_probe_restarts_only_a_frozen_one(name: str) -> None:
    """It runs as the image's user, whose group may read what is mounted, and has a limit."""
    labels = manifest("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    spec, container = PODS[name]["spec"], container_of(name)
    assert restricted_faults(spec) == set()
    user = spec["securityContext"]
    ids = f"{user['runAsUser']}:{user['runAsGroup']}"
    assert {each.word: each.text for each in dockerfile()[-1]}["USER"] == ids
    assert user["fsGroup"] == user["runAsGroup"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["automountServiceAccountToken"] is False
    assert "memory" in container["resources"]["limits"]
    ends = spec.get("restartPolicy") == "Never"
    alive = container.get("livenessProbe", {}).get("httpGet", {}).get("path")
    wanted = "/healthz?js-enabled-only=true" if name == "nats" else "/livez"
    assert alive == (None if ends else wanted)
    ready = container.get("readinessProbe", {}).get("httpGet", {}).get("path")
    assert ready == {"iot-ingest": "/readyz", "iot-ingest-gateway": "/readyz"}.get(
        name, "/healthz" if name == "nats" else None
    )
    volumes = [each["name"] for each in spec["volumes"]]
    if ("StatefulSet", name) in ALL:
        claims = ALL["StatefulSet", name]["spec"]["volumeClaimTemplates"]
        volumes += [each["metadata"]["name"] for each in claims]
    assert sorted(each["name"] for each in container["volumeMounts"]) == sorted(volumes)


@pytest.mark.parametrize("name", sorted(PODS.keys() - {"nats"}))
def test_pod_runs_a_command_of_ours_with_settings_that_exist(name: str, tmp_path: Path) -> None:
    """The ports are those of the image; there is more time to end than a drain takes."""
    container, spec = container_of(name), PODS[name]["spec"]
    build_parser(container["args"][0]).parse_args(container["args"])
    environ = {**image_environment(), **environment_of(PODS[name])}
    url = tmp_path / "url"
    for each, text in (("DATABASE", "postgresql://u@h/d"), ("BROKER", "nats://u:p@h:4222")):
        if f"INGEST_{each}_URL_FILE" in environ:
            url = tmp_path / each
            url.write_text(text)
            environ[f"INGEST_{each}_URL_FILE"] = str(url)
    load(environ={key: value for key, value in environ.items() if key.startswith("INGEST_")})
    ports = {each["name"]: each["containerPort"] for each in container.get("ports", ())}
    for port, setting in (("data", "INGEST_LISTEN"), ("admin", "INGEST_ADMIN_LISTEN")):
        assert port not in ports or environ[setting].endswith(f":{ports[port]}")
    assert environ.get("INGEST_STREAM_REPLICAS") == ("3" if name in OF_ROLES else None)
    if name in OF_ROLES:
        monitors = environ["INGEST_BROKER_MONITOR_URL"].split(",")
        assert monitors == [f"http://{host}:8222" for host in NATS_HOSTS]
    if "livenessProbe" in container:
        pause_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds")
        drains = 2 if name == "iot-ingest-gateway" else 1
        wanted_s = (pause_s or 0) + drains * DRAIN_S + 10
        assert spec["terminationGracePeriodSeconds"] > wanted_s


SUFFIXES = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}
ROOM = 1.25  # a file system's own needs, and a drain may dead-letter beyond `dlq_bytes_max`


def room_wanted(settings: Settings) -> float:
    """Return how many bytes a state folder without an embedded database may come to take."""
    kept = settings.journal_bytes_max + settings.dlq_bytes_max
    return kept * ROOM + settings.disk_free_bytes_min


def claimed_bytes(name: str) -> int:
    """Return the size of the one volume that each pod of a StatefulSet has."""
    (claim,) = ALL["StatefulSet", name]["spec"]["volumeClaimTemplates"]
    storage = claim["spec"]["resources"]["requests"]["storage"]
    return int(storage[:-2]) * SUFFIXES[storage[-2:]]


def test_volume_holds_all_that_the_settings_let_it_hold() -> None:
    """The volume is larger than the journal may be, else `disk_low` comes hours too early.

    Compared with the settings in force in the pod: those of the image, and its own.
    """
    environ = {**image_environment(), **environment_of(service_pod())}
    environ.pop("INGEST_DATABASE_URL_FILE")  # there is no such file here
    settings = load(environ=environ).settings
    mounts = {each["mountPath"] for each in container_of("iot-ingest")["volumeMounts"]}
    assert settings.state_dir in mounts
    assert claimed_bytes("iot-ingest") >= room_wanted(settings)
    assert claimed_bytes("iot-ingest") < room_wanted(replace(settings, journal_bytes_max=2**34))


def test_job_makes_the_table_and_grants_the_role_of_the_service() -> None:
    """The Job runs a command of ours, for the role that the document makes."""
    args = build_parser("schema").parse_args(container_of("iot-ingest-schema")["args"])
    assert args.schema_command == "apply"
    assert f"create role {args.role} login " in OPERATING
    for name in ("iot-ingest", "iot-ingest-writer"):
        given = environment_of(PODS[name])
        assert given["INGEST_SCHEMA_APPLY"] == given["INGEST_HOUSEKEEPING"] == "false"
    for name in ("iot-ingest-schema", "iot-ingest-stream"):
        job = ALL["Job", name]["spec"]
        assert job["backoffLimit"] > 0, "the server may come later"
        assert job["ttlSecondsAfterFinished"] > 0, "one that stays cannot be applied once more"


def test_nats_servers_are_apart_and_few_are_away_at_once() -> None:
    """One a node, one at a time; the configuration is that of deploy/nats, with the passwords."""
    state = ALL["StatefulSet", "nats"]["spec"]
    pod = state["template"]["spec"]
    assert state["replicas"] == len(NATS_HOSTS)
    assert state["serviceName"] == "nats"
    (apart,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert selected_pods(apart["labelSelector"]) == {"nats"}
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    (volume,) = pod["volumes"]
    config, passwords = volume["projected"]["sources"]
    (made,) = document(NATS / "kustomization.yaml")["configMapGenerator"]
    assert config["configMap"]["name"] == made["name"]
    assert made["files"] == ["nats.conf=kubernetes.conf", "roles.conf"]
    assert passwords["secret"]["name"] == "nats-passwords"
    text = (NATS / "kubernetes.conf").read_text()
    assert re.findall(r"nats://([\w.-]+):6222", text) == NATS_HOSTS
    mounts = {each["name"]: each["mountPath"] for each in container_of("nats")["volumeMounts"]}
    assert container_of("nats")["command"][-1] == f"{mounts['config']}/nats.conf"
    assert f'store_dir: "{mounts["data"]}"' in text
    max_file = int(re.findall(r"max_file: (\d+)GB", text)[0]) * 10**9
    assert max_file <= 0.8 * claimed_bytes("nats")
    assert max_file > Settings().stream_bytes_max + Settings().dlq_bytes_max


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


# Services, policies, alerts


def test_objects_find_each_other() -> None:
    """Services, budgets, autoscaler and monitor mean the pods that their names say, and no Job."""
    instances = {"iot-ingest", "iot-ingest-gateway", "iot-ingest-writer"}
    for kind, name, folder, wanted in (
        ("Service", "iot-ingest", BASE, {"iot-ingest"}),
        ("Service", "iot-ingest", ROLES, {"iot-ingest-gateway"}),
        ("Service", "iot-ingest-instances", BASE, instances),
        ("Service", "nats", ROLES, {"nats"}),
        ("PodDisruptionBudget", "iot-ingest", BASE, instances),
        ("PodDisruptionBudget", "nats", ROLES, {"nats"}),
    ):
        found = manifest(kind, name, folder)["spec"]
        assert selected_pods(found["selector"]) == wanted, (kind, name)
        for pod in wanted:
            names = {each["name"] for each in container_of(pod)["ports"]}
            assert {each["targetPort"] for each in found.get("ports", ())} <= names
    for (kind, name), one in ALL.items():
        if kind in {"StatefulSet", "Deployment"}:
            assert selected_pods(one["spec"]["selector"]) == {name}
    assert ALL["StatefulSet", "iot-ingest"]["spec"]["serviceName"] == "iot-ingest-instances"
    scaled = ALL["HorizontalPodAutoscaler", "iot-ingest-gateway"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == "iot-ingest-gateway"
    assert "replicas" not in ALL["Deployment", "iot-ingest-gateway"]["spec"]
    assert scaled["minReplicas"] >= 2, "else the budget would keep a node from being drained"


def test_monitor_of_the_operator_finds_all_and_joins_instances_as_prometheus_yml_does() -> None:
    """The same rules, in the spelling of the operator."""
    (job,) = document(DEPLOY / "prometheus.yml")["scrape_configs"]
    monitor = ALL["ServiceMonitor", "iot-ingest"]["spec"]
    (endpoint,) = monitor["endpoints"]

    def snake(rule: dict[str, Any]) -> dict[str, Any]:
        return {re.sub("[A-Z]", lambda c: "_" + c[0].lower(), k): v for k, v in rule.items()}

    rules = [snake(each) for each in endpoint["metricRelabelings"]]
    assert rules == job["metric_relabel_configs"]
    (rename,) = endpoint["relabelings"]
    assert rename["targetLabel"] == "instance"
    watched = ALL["Service", "iot-ingest-instances"]
    labels = watched["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["jobLabel"]] == job["job_name"] == "iot-ingest"
    assert endpoint["port"] in {each["name"] for each in watched["spec"]["ports"]}


def policies() -> Iterator[Manifest]:
    """Yield what each network policy says."""
    return (each["spec"] for (kind, _), each in ALL.items() if kind == "NetworkPolicy")


def allowed(direction: str) -> set[tuple[str, str, int | str]]:
    """Return who may reach whom at which port, by the policies; a namespace has a / before it."""
    found: set[tuple[str, str, int | str]] = set()
    for policy in policies():
        assert "Egress" in policy["policyTypes"] or "egress" not in policy
        for rule in policy.get(direction, ()):
            for other in rule["from" if direction == "ingress" else "to"]:
                pods = selected_pods(other.get("podSelector", {}))
                if "namespaceSelector" in other:
                    (name,) = other["namespaceSelector"]["matchLabels"].values()
                    pods = {f"/{name}"}
                found |= {
                    (pod, there, port["port"])
                    for pod in selected_pods(policy["podSelector"])
                    for there in pods
                    for port in rule["ports"]
                }
    return found


def test_network_policies_open_what_the_pods_need_and_no_more() -> None:
    """Both ends of each way are open; the database is the writers'; the monitor port is ours."""
    out, into = allowed("egress"), allowed("ingress")
    assert {pod for pod, there, port in out if (there, port) == ("/databases", 5432)} == {
        "iot-ingest",
        "iot-ingest-writer",
        "iot-ingest-schema",
    }
    for port, name in ((4222, "client"), (8222, "monitor")):
        assert {pod for pod, there, at in out if (there, at) == ("nats", port)} == OF_ROLES
        assert {there for pod, there, at in into if (pod, at) == ("nats", name)} == OF_ROLES
    assert ("nats", "nats", 6222) in out
    assert {there for pod, there, at in into if (pod, at) == ("nats", "cluster")} == {"nats"}
    posts = {(pod, there) for pod, there, at in into if at == "data"}
    assert posts == {("iot-ingest", "/ingress"), ("iot-ingest-gateway", "/ingress")}
    assert {there for _, there, at in into if at == "admin"} == {"/monitoring"}
    for pod in PODS:
        assert (pod, "/kube-system", 53) in out, pod
        for each in ("Ingress", "Egress"):
            assert any(
                pod in selected_pods(policy["podSelector"])
                for policy in policies()
                if each in policy["policyTypes"]
            ), pod


def test_database_outside_of_the_cluster_can_be_let_in_by_its_comment() -> None:
    """Without the # the comment is another valid rule of the same policy."""
    (real,) = (
        each
        for each in yaml.safe_load_all(uncommented(BASE / "networkpolicy.yaml", "- to:"))
        if each["metadata"]["name"] == "iot-ingest-to-database"
    )
    kubernetes_validate.validate(real, "1.34", strict=True)
    before, outside = real["spec"]["egress"]
    assert [before] == ALL["NetworkPolicy", "iot-ingest-to-database"]["spec"]["egress"]
    assert outside["to"][0].keys() == {"ipBlock"}
    assert outside["ports"] == before["ports"]


def test_rules_of_the_operator_are_those_of_alerts_yml(tmp_path: Path) -> None:
    """The script prints them, also those of a copy; Prometheus takes them."""
    script = copy_of(tmp_path, "alerts.yml", "used_ratio > 0.8", "used_ratio > 0.95").parent
    code, said = run(script / "make-prometheusrule", cwd=tmp_path)
    assert code == 0, said
    made = yaml.safe_load(said)
    assert named(made) == ("PrometheusRule", "iot-ingest")
    assert made["metadata"]["namespace"] == "iot-ingest"
    assert made["spec"] == document(script / "alerts.yml") != document(DEPLOY / "alerts.yml")
    plain = tmp_path / "rules.yml"
    plain.write_text(yaml.safe_dump(made["spec"]))
    code, said = run(program("promtool", "prometheus"), "check", "rules", plain)
    assert code == 0, said
    assert f"{len(alerts())} rules found" in said


# The commands of the documents


def documented(text: str, folder: str) -> str:
    """Return the script of a document that installs a folder."""
    (found,) = (each for each in fences(text) if f"-k deploy/kubernetes/{folder}" in each.text)
    return found.text


def recorded(folder: Path, script: str) -> list[list[str]]:
    """Run a script in a copy of the project; the programs in it only record their arguments."""
    shutil.copytree(DEPLOY, folder / "deploy")
    for name in ("writer_url", "admin_url"):
        (folder / name).write_text(f"postgresql://{name}/\n")
    shims = folder / "shims"
    shims.mkdir()
    for name in ("docker", "psql", "kubectl"):
        path = shims / name
        path.write_text(
            f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >>"{folder}/calls"; echo >>"{folder}/calls"\n'
        )
        path.chmod(0o755)
    given = (f"PATH={shims}{os.pathsep}{os.environ['PATH']}", "ADMIN_URL=postgresql://admin@db/t")
    code, said = run("env", *given, "REGISTRY=r.example", "sh", "-euc", script, cwd=folder)
    assert code == 0, said
    calls = (folder / "calls").read_text().split("\n\n")
    return [each.splitlines() for each in calls if each]


@pytest.mark.parametrize("folder", ["base", "roles"])
def test_documented_commands_make_each_secret_and_leave_nothing_late(
    tmp_path: Path, folder: str
) -> None:
    """The order: image, role, namespace, secrets, all the rest, the end of the Jobs."""
    text = OPERATING if folder == "base" else DOCUMENTS["docs/roles.md"]
    script = documented(text, folder).replace("YOUR.REGISTRY/TEAM", "r.example")
    calls = recorded(tmp_path, script)
    installed = document(tmp_path / "deploy" / "kubernetes" / folder / "kustomization.yaml")
    (image,) = installed["images"]
    pulled = f"r.example/{image['name']}:{image['newTag']}"
    assert f"{image['newName']}:{image['newTag']}" == pulled
    assert calls[0] == ["docker", "build", "-f", "deploy/Dockerfile", "-t", pulled, "."]
    assert calls[1] == ["docker", "push", pulled]
    said = [" ".join(each) for each in calls]
    marks = ("base/namespace.yaml", "create secret", f"apply -k deploy/kubernetes/{folder}", "wait")
    order = [next(n for n, each in enumerate(said) if mark in each) for mark in marks]
    assert order == sorted(order)
    assert (BASE / "namespace.yaml").is_file()
    made: dict[str, dict[str, str]] = {}
    for words in (each for each in calls if "secret" in each):
        files = (each.removeprefix("--from-file=").partition("=") for each in words[7:])
        made[words[6]] = {key: (tmp_path / file).read_text() for key, _, file in files}
    objects = manifests(BASE if folder == "base" else ROLES)
    jobs = {f"job/{each['metadata']['name']}" for each in objects if each["kind"] == "Job"}
    assert jobs == {each for each in calls[order[-1]] if each.startswith("job/")}
    used = {"nats-passwords"} if folder == "roles" else set()
    for name in (named(each)[1] for each in objects if each["kind"] in WITH_PODS):
        check_secrets(name, made)
        used |= {*secrets_of(PODS[name])}
    assert used == made.keys()


def check_secrets(name: str, made: dict[str, dict[str, str]]) -> None:
    """Check that a pod finds its own URLs, and sees no other; the database is the writers'."""
    if name == "nats":
        listed = re.findall(r"^(\w+)_PASSWORD", made["nats-passwords"]["passwords.conf"], re.M)
        assert {*listed} == {each.upper() for each in BROKER_ROLES}
        return
    mounts = {each["mountPath"]: each["name"] for each in container_of(name)["volumeMounts"]}
    volumes = {each["name"]: each.get("secret", {}) for each in PODS[name]["spec"]["volumes"]}
    environ = environment_of(PODS[name])
    seen = set()
    for file in (PurePath(value) for key, value in environ.items() if key.endswith("_FILE")):
        secret = volumes[mounts[str(file.parent)]]["secretName"]
        text = made[secret][file.name].strip()
        seen.add(secret)
        if file.name == "broker_url":
            servers, login, _ = split_broker_url(text)
            role = name.rpartition("-")[2]
            assert login == {"stream": "admin"}.get(role, role)
            assert [urlsplit(server).hostname for server in servers] == NATS_HOSTS
        else:
            who = "admin" if name == "iot-ingest-schema" else "writer"
            assert text == f"postgresql://{who}_url/"
    assert seen == {*secrets_of(PODS[name])}
    assert "envFrom" not in container_of(name)


def test_both_installations_can_be_there_while_one_takes_over() -> None:
    """The documented command removes what the roles have no use for, and that is not much."""
    (script,) = (
        each.text
        for each in fences(DOCUMENTS["docs/roles.md"])
        if " delete statefulset" in each.text
    )
    *_, kind, name = script.split()
    only_base = {named(each) for each in manifests()} - {named(each) for each in manifests(ROLES)}
    assert {(each.lower(), other) for each, other in only_base} == {(kind, name)}


def test_documents_name_jobs_and_sets_that_exist() -> None:
    """Commands within sentences name existing objects, too."""
    names = {f"{kind.lower()}/{name}" for kind, name in ALL}
    text = "".join(DOCUMENTS.values())
    found = re.findall(r"\b(?:job|statefulset|deployment)[/ ]iot-ingest[\w-]*", text)
    assert len(found) >= 5
    assert {each.replace(" ", "/") for each in found} <= names
