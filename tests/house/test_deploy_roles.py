"""Tests of the files of deploy/ for gateways, writers and nats-servers: they fit each other.

For the rules that all of them must follow see test_deploy.py and test_deploy_kubernetes.py.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ingest.broker.roles import ROLES as BROKER_ROLES
from ingest.cli.main import build_parser
from ingest.config.broker_url import split_broker_url
from ingest.config.loading import load
from ingest.config.settings import Settings
from tests.support.deployment import (
    BASE,
    DEPLOY,
    KUBERNETES,
    REPOSITORY,
    ROLES,
    Manifest,
    compose_services,
    document,
    environment_of,
    image_environment,
    manifest,
    manifests,
    program,
    restricted_faults,
    run,
    secrets_of,
    shown_in_head,
)
from tests.support.documents import DOCUMENTS, fences

SYSTEMD = DEPLOY / "systemd"
COMMON = SYSTEMD / "iot-ingest-.service.d" / "common.conf"
UNITS = {
    "iot-ingest-up": "up",
    "iot-ingest-gateway@8080": "gateway",
    "iot-ingest-writer@8091": "writer",
    "iot-ingest-forward@billing": "forward",
    "iot-ingest-mqtt@plant": "mqtt",
}
DRAIN_S = Settings().drain_s_max
NATS_FILES = ("nats.conf", "single.conf", "kubernetes.conf")


def ours(environ: dict[str, str]) -> dict[str, str]:
    """Return the variables that are settings, without the files that are not here."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith("INGEST_") and not name.endswith("_URL_FILE")
    }


# systemd


def unit_file(unit: str) -> Path:
    """Return the file of a unit or of its template."""
    return SYSTEMD / f"{re.sub(r'@.*', '@', unit)}.service"


def lines_of(unit: str) -> list[tuple[str, str]]:
    """Return the keys and values of a unit: its own, then those that all have in common."""
    instance = unit.partition("@")[2]
    text = unit_file(unit).read_text().replace("%i", instance) + COMMON.read_text()
    parts = (each.partition("=") for each in text.splitlines() if not each.startswith("#"))
    return [(name, value) for name, mark, value in parts if mark]


def placed(tmp_path: Path) -> Path:
    """Copy the folder, with the path of a program that exists, since the tool checks it."""
    shutil.copytree(SYSTEMD, tmp_path / "systemd")
    (tmp_path / "home" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "home" / ".venv" / "bin" / "python").symlink_to(shutil.which("sh") or "/bin/sh")
    for each in (tmp_path / "systemd").rglob("*.*"):
        if each.is_file():
            text = each.read_text().replace("/opt/iot-ingest", str(tmp_path / "home"))
            each.write_text(text)
    return tmp_path / "systemd"


def test_systemd_takes_the_units_and_they_may_do_little(tmp_path: Path) -> None:
    """No warning; exposure as that of iot-ingest.service, by the file that they have in common."""
    analyze = program("systemd-analyze", "systemd")
    folder = placed(tmp_path)
    paths = [folder / f"{unit}.service" for unit in UNITS]
    assert run(analyze, "verify", "--man=no", *paths) == (0, "")
    security = (analyze, "security", "--offline=true", "--no-pager", "--threshold=12")
    code, said = run(*security, *paths)
    assert code == 0, said[-200:]
    common = folder / COMMON.relative_to(SYSTEMD)
    common.write_text(common.read_text().replace("\nSystemCallFilter=@", "\n#"))
    for each in paths:
        assert run(*security, each)[0] != 0, each
    common.write_text(common.read_text().replace("ProtectHome=", "ProtectHom="))
    assert "ProtectHom" in run(analyze, "verify", "--man=no", paths[0])[1]


def test_common_part_is_that_of_the_one_service() -> None:
    """What iot-ingest.service may do, restart and watch: the roles have the same."""
    whole = (DEPLOY / "iot-ingest.service").read_text().splitlines()
    own = {"Documentation=file:///opt/iot-ingest/docs/roles.md"}
    lines = [each for each in COMMON.read_text().splitlines() if "=" in each and each[0] != "#"]
    for line in lines:
        assert line in whole or line.split()[0] in own, line
    section = whole[whole.index("NoNewPrivileges=yes") : whole.index("UMask=0077") + 1]
    assert section == COMMON.read_text().splitlines()[-len(section) :]


@pytest.mark.parametrize("unit", UNITS)
def test_unit_runs_its_role_with_settings_that_exist(unit: str) -> None:
    """Command and variables are ours; each file of a secret is a credential; time for a drain."""
    lines = lines_of(unit)
    keys = dict(lines)
    words = keys["ExecStart"].split()
    assert words[:4] == ["/opt/iot-ingest/.venv/bin/python", "-P", "-m", "ingest"]
    assert words[4] == UNITS[unit]
    build_parser(words[4]).parse_args(words[4:])
    environ = dict(
        each.split("=", 1)
        for name, value in lines
        if name == "Environment"
        for each in shlex.split(value)
    )
    load(environ=ours(environ))
    credentials = [value.partition(":")[0] for name, value in lines if name == "LoadCredential"]
    named = [each.partition("%d/")[2] for each in (*environ.values(), *words) if "%d/" in each]
    assert sorted(named) == sorted(credentials)
    assert ("INGEST_BROKER_URL_FILE" in environ) == (UNITS[unit] not in {"up", "mqtt"})
    assert ("INGEST_DATABASE_URL_FILE" in environ) == (UNITS[unit] in {"up", "writer"})
    assert int(keys["TimeoutStopSec"]) > (4 if UNITS[unit] == "up" else 2) * DRAIN_S
    assert keys["Type"] == "notify"
    assert keys["KillMode"] == "mixed", "the supervisor alone gets SIGTERM"
    assert ("ExecReload" in keys) == (unit == "iot-ingest-up")


@pytest.mark.parametrize("unit", UNITS)
def test_head_of_the_unit_makes_the_files_that_it_needs(unit: str) -> None:
    """Copies exist; each credential of its own is written before the unit is started."""
    steps = [each for each in shown_in_head(unit_file(unit)) if each]
    commands = [each for each in steps if not re.fullmatch(r"INGEST_\w+=\S+", each[0])]
    for words in commands:
        if words[0] == "cp":
            assert all((REPOSITORY / each).exists() for each in words[1:-1] if each[0] != "-")
            assert str(COMMON.parent.relative_to(REPOSITORY)) in words
    assert commands[-1][:3] == ["systemctl", "enable", "--now"]
    assert unit in commands[-1]
    written = " ".join(" ".join(each) for each in commands)
    files = [value.partition(":")[2] for name, value in lines_of(unit) if name == "LoadCredential"]
    for each in set(files) - {"/etc/iot-ingest/database_url"}:  # as for iot-ingest.service
        assert f"> {each} " in written, each
    for (line,) in (each for each in steps if each not in commands):
        load(environ=dict([line.split("=", 1)]))


# nats-server


@pytest.mark.parametrize("name", NATS_FILES)
def test_nats_server_syncs_each_message_and_lets_in_the_roles(name: str) -> None:
    """Each configuration has what the service relies on."""
    text = (DEPLOY / "nats" / name).read_text()
    for line in ("sync_interval: always", "max_payload: 8MB", 'include "roles.conf"'):
        assert re.search(rf"^ *{line}", text, re.MULTILINE), line


def test_three_pods_and_three_machines_have_the_same_settings() -> None:
    """The two configurations differ in names and sizes only."""

    def settings(name: str) -> list[str]:
        lines = (DEPLOY / "nats" / name).read_text().splitlines()
        texts = (each.partition("#")[0].strip() for each in lines)
        own = ("server_name", "routes", "max_file")
        return [each for each in texts if each and not each.startswith(own)]

    assert settings("kubernetes.conf") == settings("nats.conf")


# Compose


def test_each_role_of_compose_has_its_own_secrets_and_settings_that_exist() -> None:
    """A role sees the password of its own user only; all have the monitor port of the server."""
    services = compose_services("compose.roles.yaml")
    for name, user in (
        ("stream", "admin"),
        ("gateway", "gateway"),
        ("writer", "writer"),
        ("forward", "forward"),
    ):
        service = services[name]
        environ = {**image_environment(), **service["environment"]}
        secrets = {f"/run/secrets/{each}" for each in service["secrets"]}
        assert environ["INGEST_BROKER_URL_FILE"] == f"/run/secrets/broker_{user}_url"
        files = {value for each, value in environ.items() if each.endswith("_URL_FILE")}
        words = [each.replace("${FORWARDS:-none}", "billing") for each in service["command"]]
        files |= {each for each in words if each.startswith("/run/secrets/")}
        assert files == secrets
        given = ours({each: value.replace("${FORWARDS:-}", "") for each, value in environ.items()})
        load(environ=given)
        build_parser(words[0]).parse_args(words)
        monitors = set() if name == "forward" else {"http://nats:8222"}
        assert {v for k, v in given.items() if k == "INGEST_BROKER_MONITOR_URL"} == monitors
        assert "broker" in service["networks"]
    assert services["nats"]["networks"] == ["broker"]
    assert not {"gateway", "forward", "stream"} & {
        name for name, each in services.items() if "database" in each["networks"]
    }


def test_prometheus_of_compose_finds_each_role() -> None:
    """It asks DNS for services that share a network with it, at their admin port."""
    services = compose_services("compose.roles.yaml")
    (job,) = document(DEPLOY / "prometheus.roles.yml")["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert job["job_name"] == "iot-ingest"
    assert str(found["port"]) == image_environment()["INGEST_ADMIN_LISTEN"].rpartition(":")[2]
    watched = {
        name
        for name, each in services.items()
        if "watching" in each["networks"] and each["image"].startswith("iot-ingest:")
    }
    assert set(found["names"]) == watched == {"gateway", "writer", "forward"}
    mounts = dict(each.split(":")[1::-1] for each in services["prometheus"]["volumes"])
    assert mounts["/etc/prometheus/prometheus.yml"] == "./prometheus.roles.yml"
    assert mounts["/etc/prometheus/alerts.yml"] == "./alerts.yml"


def test_passwords_of_the_broker_are_those_in_the_urls(tmp_path: Path) -> None:
    """Each user of roles.conf gets one; the URLs name the servers that BROKER names."""
    script = Path(shutil.copy(DEPLOY / "make-secrets", tmp_path))
    hosts = "nats-0.nats:4222,nats-1.nats:4222"
    code, said = run("env", f"BROKER={hosts}", script, cwd=tmp_path)
    assert code == 0, said
    made = {each.name: each.read_text() for each in (tmp_path / "secrets").iterdir()}
    listed = dict(re.findall(r'^(\w+): "(\w{48})"$', made["broker_passwords"], re.MULTILINE))
    assert listed.keys() == {f"{each.upper()}_PASSWORD" for each in BROKER_ROLES}
    assert len(set(listed.values())) == len(BROKER_ROLES)
    for role in BROKER_ROLES:
        found = split_broker_url(made[f"broker_{role}_url"].strip())
        assert found[0] == tuple(f"nats://{each}" for each in hosts.split(","))
        assert found[1:] == (role, listed[f"{role.upper()}_PASSWORD"])
    (tmp_path / "secrets" / "broker_writer_url").unlink()
    assert run("env", f"BROKER={hosts}", script, cwd=tmp_path)[0] == 0
    assert made == {each.name: each.read_text() for each in (tmp_path / "secrets").iterdir()}


# Kubernetes

PODS = {
    name: manifest(kind, name, ROLES)["spec"]["template"]
    for kind, name in (
        ("StatefulSet", "nats"),
        ("Job", "iot-ingest-stream"),
        ("Deployment", "iot-ingest-gateway"),
        ("Deployment", "iot-ingest-writer"),
        ("StatefulSet", "iot-ingest-forward"),
        ("Job", "iot-ingest-schema"),
    )
}
OF_ROLES = [each for each in PODS if each not in {"nats", "iot-ingest-schema"}]
NATS_HOSTS = [f"nats-{number}.nats" for number in range(3)]


def selected_pods(selector: Manifest) -> set[str]:
    """Return the names of the pods that a selector means."""
    exact = selector.get("matchLabels", selector if "matchExpressions" not in selector else {})
    found = set()
    for name, pod in PODS.items():
        labels = pod["metadata"]["labels"]
        some = selector.get("matchExpressions", ())
        if exact.items() <= labels.items() and all(
            labels.get(each["key"]) in each["values"] for each in some if each["operator"] == "In"
        ):
            found.add(name)
    return found


@pytest.mark.parametrize("name", PODS)
def test_strict_namespace_admits_the_pods_of_roles(name: str) -> None:
    """Each has limits and probes that restart for nothing but a frozen process."""
    spec = PODS[name]["spec"]
    assert restricted_faults(spec) == set()
    (container,) = spec["containers"]
    assert container["image"] == "iot-ingest"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["automountServiceAccountToken"] is False
    assert "memory" in container["resources"]["limits"]
    alive = container.get("livenessProbe", {}).get("httpGet", {}).get("path")
    wanted = {"nats": "/healthz?js-enabled-only=true"}.get(name, "/livez")
    assert alive == (None if PODS[name]["spec"].get("restartPolicy") == "Never" else wanted)
    mounts = {each["name"] for each in container["volumeMounts"]}
    assert mounts >= {each["name"] for each in spec["volumes"]}


@pytest.mark.parametrize("name", OF_ROLES)
def test_pod_of_a_role_has_its_own_secrets_and_settings_that_exist(name: str) -> None:
    """A pod sees the password of its own user of the broker; the database is the writer's."""
    pod = PODS[name]
    (container,) = pod["spec"]["containers"]
    args = container["args"]
    environ = environment_of(pod)
    build_parser(args[0]).parse_args(args)
    load(environ=ours(environ))
    user = {"stream": "admin"}.get(args[0], args[0])
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each.get("secret", {}) for each in pod["spec"]["volumes"]}
    example = {
        each["metadata"]["name"]: each["stringData"]
        for each in (*manifests(ROLES), manifest("Secret", "iot-ingest-database"))
        if each["kind"] == "Secret"
    }
    files = [value for key, value in environ.items() if key.endswith("_FILE")]
    files += [each for each in args if each.startswith("/run/secrets/")]
    seen = set()
    for each in files:
        folder, _, key = each.rpartition("/")
        secret = volumes[mounts[folder]]["secretName"]
        assert key in example[secret], each
        seen.add(secret)
        if key == "broker_url":
            servers, login, _ = split_broker_url(example[secret][key])
            assert login == user
            assert [urlsplit(server).hostname for server in servers] == NATS_HOSTS
    assert seen == set(secrets_of(pod))
    assert ("iot-ingest-database" in seen) == (args[0] == "writer")
    if args[0] != "forward":
        assert environ["INGEST_STREAM_REPLICAS"] == "3"
    if args[0] != "forward":
        monitors = environ["INGEST_BROKER_MONITOR_URL"].split(",")
        assert monitors == [f"http://{host}:8222" for host in NATS_HOSTS]
    if args[0] in {"gateway", "writer", "forward"}:
        pause_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds")
        drains = 2 if args[0] == "gateway" else 1
        wanted_s = (pause_s or 0) + drains * DRAIN_S + 10
        assert pod["spec"]["terminationGracePeriodSeconds"] > wanted_s


def test_nats_servers_of_kubernetes_are_apart_and_few_are_away_at_once() -> None:
    """One a node, one at a time; the configuration is that of deploy/nats, with the passwords."""
    state = manifest("StatefulSet", "nats", ROLES)["spec"]
    pod = state["template"]["spec"]
    assert state["replicas"] == len(NATS_HOSTS)
    assert state["serviceName"] == manifest("Service", "nats", ROLES)["metadata"]["name"] == "nats"
    (apart,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert selected_pods(apart["labelSelector"]) == {"nats"}
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    (volume,) = pod["volumes"]
    config, passwords = volume["projected"]["sources"]
    (made,) = document(DEPLOY / "nats" / "kustomization.yaml")["configMapGenerator"]
    assert config["configMap"]["name"] == made["name"]
    assert made["files"] == ["nats.conf=kubernetes.conf", "roles.conf"]
    example = manifest("Secret", passwords["secret"]["name"], ROLES)["stringData"]
    users = set(re.findall(r"^(\w+)_PASSWORD", example["passwords.conf"], re.MULTILINE))
    assert users == {each.upper() for each in BROKER_ROLES}
    text = (DEPLOY / "nats" / "kubernetes.conf").read_text()
    routes = re.findall(r"nats://([\w.-]+):6222", text)
    assert routes == NATS_HOSTS
    (container,) = pod["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert container["command"][-1] == f"{mounts['config']}/nats.conf"
    assert f'store_dir: "{mounts["data"]}"' in text
    max_file = int(re.findall(r"max_file: (\d+)GB", text)[0])
    (claim,) = state["volumeClaimTemplates"]
    storage = claim["spec"]["resources"]["requests"]["storage"]
    assert max_file <= 0.8 * int(storage.removesuffix("Gi"))
    kept = Settings().stream_bytes_max + Settings().dlq_bytes_max
    assert max_file * 10**9 > kept


def test_objects_of_roles_find_each_other() -> None:
    """Services, budgets, autoscaler and monitor mean the pods that their names say."""
    for kind, name, wanted in (
        ("Service", "nats", {"nats"}),
        ("Service", "iot-ingest", {"iot-ingest-gateway"}),
        (
            "Service",
            "iot-ingest-roles",
            {"iot-ingest-gateway", "iot-ingest-writer", "iot-ingest-forward"},
        ),
        ("PodDisruptionBudget", "nats", {"nats"}),
        ("PodDisruptionBudget", "iot-ingest-gateway", {"iot-ingest-gateway"}),
        ("PodDisruptionBudget", "iot-ingest-writer", {"iot-ingest-writer"}),
    ):
        found = manifest(kind, name, ROLES)["spec"]
        assert selected_pods(found["selector"]) == wanted, (kind, name)
        for pod in wanted:
            (container,) = PODS[pod]["spec"]["containers"]
            names = {each["name"] for each in container["ports"]}
            assert {each["targetPort"] for each in found.get("ports", ())} <= names
    scaled = manifest("HorizontalPodAutoscaler", "iot-ingest-gateway", ROLES)["spec"]
    assert scaled["scaleTargetRef"]["name"] == "iot-ingest-gateway"
    assert "replicas" not in manifest("Deployment", "iot-ingest-gateway", ROLES)["spec"]
    assert scaled["minReplicas"] >= 2, "else the budget would keep a node from being drained"
    monitor = manifest("ServiceMonitor", "iot-ingest-roles", ROLES)["spec"]
    watched = manifest("Service", "iot-ingest-roles", ROLES)["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= watched.items()
    assert watched[monitor["jobLabel"]] == "iot-ingest"


def test_monitor_of_the_operator_joins_instances_as_prometheus_yml_does() -> None:
    """The same rules, in the spelling of the operator."""
    (job,) = document(DEPLOY / "prometheus.yml")["scrape_configs"]
    (endpoint,) = manifest("ServiceMonitor", "iot-ingest-roles", ROLES)["spec"]["endpoints"]

    def snake(rule: dict[str, Any]) -> dict[str, Any]:
        return {re.sub("[A-Z]", lambda c: "_" + c[0].lower(), k): v for k, v in rule.items()}

    rules = [snake(each) for each in endpoint["metricRelabelings"]]
    assert rules == job["metric_relabel_configs"]
    (rename,) = endpoint["relabelings"]
    assert rename["targetLabel"] == "instance"


def allowed(direction: str) -> set[tuple[str, str, int | str]]:
    """Return who may reach whom at which port, by the policies; a namespace has a / before it."""
    found: set[tuple[str, str, int | str]] = set()
    peer = "from" if direction == "ingress" else "to"
    for each in manifests(ROLES):
        if each["kind"] != "NetworkPolicy":
            continue
        policy = each["spec"]
        assert "Egress" in policy["policyTypes"] or "egress" not in policy
        for rule in policy.get(direction, ()):
            others = rule.get(peer, [{}])
            for other in others:
                pods = {"*"} if not other else selected_pods(other.get("podSelector", {}))
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


def test_network_policies_open_what_the_roles_need_and_no_more() -> None:
    """Both ends of each way are open; the database is the writers', the monitor port is ours."""
    out, into = allowed("egress"), allowed("ingress")
    clients = {"iot-ingest-stream", "iot-ingest-gateway", "iot-ingest-writer", "iot-ingest-forward"}
    assert {pod for pod, there, port in out if (there, port) == ("/databases", 5432)} == {
        "iot-ingest-writer",
        "iot-ingest-schema",
    }
    for port, name in ((4222, "client"), (8222, "monitor")):
        assert {pod for pod, there, at in out if (there, at) == ("nats", port)} == clients
        assert {there for pod, there, at in into if (pod, at) == ("nats", name)} == clients
    assert ("nats", "nats", 6222) in out
    assert {there for pod, there, at in into if (pod, at) == ("nats", "cluster")} == {"nats"}
    assert {pod for pod, there, at in into if at == "data"} == {"iot-ingest-gateway"}
    assert {pod for pod, there, at in out if there == "*"} == {"iot-ingest-forward"}
    for pod in PODS:
        assert (pod, "/kube-system", 53) in out, pod
        assert any(pod in selected_pods(each) for each in closed("Ingress")), pod
        assert any(pod in selected_pods(each) for each in closed("Egress")), pod


def closed(direction: str) -> list[Manifest]:
    """Return the selectors of the policies that close a direction."""
    return [
        each["spec"]["podSelector"]
        for each in manifests(ROLES)
        if each["kind"] == "NetworkPolicy" and direction in each["spec"]["policyTypes"]
    ]


def test_documented_commands_make_each_secret_of_roles(tmp_path: Path) -> None:
    """Every secret that a pod mounts is made by a command, from files that make-secrets makes."""
    (script,) = (
        each.text
        for each in fences(DOCUMENTS["docs/roles.md"])
        if "-k deploy/kubernetes/roles" in each.text
    )
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    for name in ("writer_url", "admin_url"):
        (tmp_path / name).write_text(f"postgresql://{name}/\n")
    shims = tmp_path / "shims"
    shims.mkdir()
    for name in ("docker", "kubectl"):
        (shims / name).write_text(f'#!/bin/sh\necho {name} "$@" >>"{tmp_path}/calls"\n')
        (shims / name).chmod(0o755)
    path = f"PATH={shims}:/usr/bin:/bin"
    code, said = run("env", path, "REGISTRY=r.example", "sh", "-euc", script, cwd=tmp_path)
    assert code == 0, said
    calls = (tmp_path / "calls").read_text().splitlines()
    made = {}
    for words in (each.split() for each in calls if " create secret generic " in each):
        key, _, file = words[-1].removeprefix("--from-file=").partition("=")
        made[words[6]] = (key, (tmp_path / file).read_text())
    pods = [pod for name, pod in PODS.items() if name not in {"nats", "iot-ingest-forward"}]
    needed = {secret for pod in pods for secret in secrets_of(pod)} | {"nats-passwords"}
    assert needed <= made.keys()
    for name, (key, text) in made.items():
        if name.startswith("iot-ingest-broker-"):
            servers, login, _ = split_broker_url(text.strip())
            assert (key, login) == ("broker_url", name.rpartition("-")[2])
            assert [urlsplit(server).hostname for server in servers] == NATS_HOSTS
    assert made["nats-passwords"][0] == "passwords.conf"
    for image in document(tmp_path / "deploy/kubernetes/roles/kustomization.yaml")["images"]:
        assert image["newName"] == f"r.example/{image['name']}"
    order = [
        next(n for n, each in enumerate(calls) if text in each)
        for text in ("namespace.yaml", "create secret", "apply -k", "job/iot-ingest-stream")
    ]
    assert order == sorted(order)
    assert (BASE / "namespace.yaml").is_file()


def test_both_installations_can_be_there_while_one_takes_over() -> None:
    """They share the Service of devices and the base; the documented commands remove the rest."""

    def names(folder: Path) -> set[tuple[str, str]]:
        return {
            (each["kind"].lower(), each["metadata"]["name"])
            for each in manifests(folder)
            if "metadata" in each and each["kind"] != "Secret"
        }

    base = {
        (each["kind"].lower(), each["metadata"]["name"])
        for each in manifests(BASE)
        if "metadata" in each
    }
    shared = names(KUBERNETES) & names(ROLES)
    assert shared == base | {("service", "iot-ingest")}
    (script,) = (
        each.text
        for each in fences(DOCUMENTS["docs/roles.md"])
        if " delete statefulset" in each.text
    )
    removed = {
        (kind, words[-1])
        for words in (each.split() for each in script.splitlines())
        for kind in words[4].split(",")
    }
    assert removed == names(KUBERNETES) - shared
    old, new = (
        manifest("ServiceMonitor", name, folder)["spec"]
        for name, folder in (("iot-ingest", KUBERNETES), ("iot-ingest-roles", ROLES))
    )
    assert old["selector"] != new["selector"]
