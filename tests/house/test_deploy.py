"""The files under deploy/: their readers take them, and what they name exists.

Their readers are promtool, hadolint, systemd-analyze, kubectl, and the schemas of Compose and of
Kubernetes. `./run containers` proves the rest: it runs the image, the Compose files, the pods and
the units by their documented commands. It has no cluster, so probes, Services and policies are
looked at here.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from compose_spec import PyCompose

from ingest.app.metrics_and_causes import own_metrics
from ingest.cli.commands import COMMANDS, build_parser, main
from ingest.config.loading import load
from ingest.config.settings import Settings
from ingest.model import causes
from ingest.model.ledger import Ledger
from ingest.sinks.postgres import sqlstate
from ingest.writer import database_state
from tests.support.deployment import (
    DEPLOY,
    KUBERNETES,
    OF_PROMETHEUS,
    REPOSITORY,
    Manifest,
    Query,
    alerts,
    compose_services,
    document,
    documents,
    environment_of,
    exported,
    grouped_by,
    image_environment,
    manifests,
    named,
    packaged_program,
    program,
    queries,
    run,
    selected,
)
from tests.support.documents import marked

YAML_FILES = sorted(each for kind in ("*.yml", "*.yaml") for each in DEPLOY.rglob(kind))
COMPOSE_FILES = ("compose.yaml", "compose.roles.yaml", "compose.mqtt.yaml")
UNITS = sorted(each for kind in ("*.service", "*.socket", "*.timer") for each in DEPLOY.rglob(kind))
RUNBOOK_BASE = "https://runbook.example/"
OBJECTS = {named(each): each for each in manifests()}
PODS = {
    name: each["spec"]["template"]
    for (kind, name), each in OBJECTS.items()
    if kind in {"StatefulSet", "Deployment", "Job"}
}
_ANCHOR = re.compile(r"^## (\w+)$", re.MULTILINE)


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda each: str(each.relative_to(DEPLOY)))
def test_yaml_file_is_yaml_and_repeats_no_key(path: Path) -> None:
    """Most readers silently take the last of two equal keys."""
    assert documents(path)
    for text in path.read_text().split("\n---\n"):
        top = re.findall(r"^([\w-]+):", text, re.MULTILINE)
        assert [key for key, count in Counter(top).items() if count > 1] == []


# Settings and commands


def places() -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Yield name, command and settings of all that starts a program of ours."""
    image = image_environment()
    yield "Dockerfile", ["serve"], image
    for file in COMPOSE_FILES:
        for name, service in compose_services(file).items():
            if service["image"].startswith("iot-ingest") and "entrypoint" not in service:
                words = [
                    re.sub(r"\$\{\w+:-(.*)\}", r"\1", each)
                    for each in service.get("command", ["serve"])
                ]
                yield f"{file} {name}", words, {**image, **service.get("environment", {})}
    for name in sorted(PODS.keys() - {"nats"}):
        (container,) = PODS[name]["spec"]["containers"]
        yield f"pod {name}", container["args"], {**image, **environment_of(PODS[name])}
    for unit in (each for each in UNITS if each.suffix == ".service"):
        text = unit.read_text().replace("%i", "8091").replace(" $HOUSEKEEPING_FLAGS", "")
        given = re.findall(r"^Environment=(.*)$", text, re.MULTILINE)
        (words,) = re.findall(r"^ExecStart=\S+ -P -m ingest (.*)$", text, re.MULTILINE)
        pairs = (each.split("=", 1) for line in given for each in shlex.split(line))
        named_files = set(re.findall(r"%d/(\w+)", text))
        assert named_files == set(re.findall(r"^LoadCredential=(\w+):", text, re.MULTILINE)), unit
        yield unit.name, words.split(), dict(pairs)


@pytest.mark.parametrize(
    ("words", "environ"), [pytest.param(*each[1:], id=each[0]) for each in places()]
)
def test_commands_and_settings_exist(words: list[str], environ: dict[str, str]) -> None:
    """Without the files of secrets, which are not here."""
    build_parser(words[0]).parse_args(words)
    ours = {each: value for each, value in environ.items() if each.startswith("INGEST_")}
    known = {f"INGEST_{name.upper()}" for name in Settings.__dataclass_fields__}
    files = {each for each in ours if each.endswith("_URL_FILE")}
    assert {each.removesuffix("_FILE") for each in files} <= known
    plain = {each: re.sub(r"\$\{\w+:-(.*)\}", r"\1", ours[each]) for each in ours.keys() - files}
    load(environ=plain)


def test_runbook_names_settings_commands_and_reasons_that_exist() -> None:
    """Each setting, command and reason in the runbook exists."""
    text = (DEPLOY / "RUNBOOK.md").read_text()
    for target in re.findall(r"\]\(#(\w+)\)", text):
        assert target in {each.lower() for each in _ANCHOR.findall(text)}
    known = set(Settings.__dataclass_fields__)
    for name in re.findall(r"`([a-z]+_[a-z_]+_(?:max|min|s|bytes|rows|days))`", text):
        assert name in known, name
    for word, second in re.findall(r"`ingest (?!psql)([a-z]+)(?: ([a-z]+))?", text):
        assert word in COMMANDS, word
        with pytest.raises(SystemExit) as ended:  # a wrong command returns an error
            main([word, *([second] if second else []), "--help"])
        assert ended.value.code == 0, f"ingest {word} {second}"
    hold = text[text.index("## IngestOnHold") : text.index("## IngestDatabaseDown")]
    rows = re.findall(r"^\| (`.*?) \|", hold, re.MULTILINE)
    named_here = {each for row in rows for each in re.findall(r"`(\w+)`", row)}
    sources = "".join(each.read_text() for each in (REPOSITORY / "ingest").rglob("*.py"))
    written = set(re.findall(r'Verdict\.HOLD, .*reason="(\w+)"', sources))
    own = {causes.CONFIGURATION, causes.NOT_DURABLE, causes.TABLES, causes.LETTERS_FULL}
    own |= {database_state.BREAKER}
    reasons = {*sqlstate.REASONS.values(), *own, *written} - {causes.TOO_MANY_CONNECTIONS}
    assert named_here == reasons


# Prometheus and Grafana


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.roles.yml", "prometheus.mqtt.yml"])
def test_prometheus_takes_its_configuration_and_the_alerts(name: str) -> None:
    """Also the rule file that the configuration names."""
    code, said = run(program("promtool", "prometheus"), "check", "config", name)
    assert code == 0, said
    assert f"{len(alerts())} rules found" in said


def test_scripts_for_the_alerts_print_and_change_what_they_say(tmp_path: Path) -> None:
    """The rules of the operator are those of alerts.yml; a command of the documents sets links."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (command,) = marked("docs/run/deploy.md", "test_deploy.py")
    assert run("sh", "-euc", command, cwd=tmp_path) == (0, "")
    changed = (tmp_path / "deploy" / "alerts.yml").read_text()
    before = (DEPLOY / "alerts.yml").read_text()
    assert changed == before.replace(RUNBOOK_BASE[:-1], command.split("|")[2])
    code, said = run(tmp_path / "deploy" / "make-prometheusrule", cwd=tmp_path)
    assert code == 0, said
    made = yaml.safe_load(said)
    assert named(made) == ("PrometheusRule", "iot-ingest")
    assert made["spec"] == yaml.safe_load(changed)


def test_metrics_are_named_as_prometheus_wants_them() -> None:
    """All metrics of ours follow promtool's rules of names and units."""
    text = b"".join(
        line
        for line in own_metrics(Ledger()).text().splitlines(keepends=True)
        if b"ingest_" in line.split(b"{")[0]
    )
    promtool = program("promtool", "prometheus")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_alerts_fire_and_stay_silent_as_their_tests_say(tmp_path: Path) -> None:
    """promtool plays the series of alerts_test.yml, to each alert those of its own tests.

    Each has one in which it fires, and one in which it does not. With all alerts in one file each
    test would evaluate all of them, which takes seven times as long.
    """
    promtool = program("promtool", "prometheus")
    whole = document(DEPLOY / "alerts_test.yml")
    names = []
    for group in document(DEPLOY / "alerts.yml")["groups"]:
        for rule in group["rules"]:
            name = rule["alert"]
            asked = [
                (case, bool(each["exp_alerts"]))
                for case in whole["tests"]
                for each in case["alert_rule_test"]
                if each["alertname"] == name
            ]
            assert {fires for _, fires in asked} == {True, False}, name
            rules = {"groups": [{**group, "rules": [rule]}]}
            (tmp_path / f"{name}.yml").write_text(json.dumps(rules))  # which is YAML too
            cases = {json.dumps(case): case for case, _ in asked}
            own = {**whole, "rule_files": [f"{name}.yml"], "tests": list(cases.values())}
            (tmp_path / f"{name}_test.yml").write_text(json.dumps(own))
            names.append(f"{name}_test.yml")
    code, said = run(promtool, "test", "rules", *names, cwd=tmp_path)
    assert code == 0, said
    assert said.count("SUCCESS") == len(alerts())


def test_every_alert_has_a_section_of_the_runbook_and_a_severity() -> None:
    """The section says whether it wakes somebody, what it means, what to check, what to do."""
    text = (DEPLOY / "RUNBOOK.md").read_text()
    sections = dict(zip(_ANCHOR.findall(text), _ANCHOR.split(text)[2::2], strict=True))
    assert list(sections) == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        name = rule["alert"]
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK_BASE}RUNBOOK.md#{name.lower()}"
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        word = {"critical": "Page", "warning": "Wait"}[rule["labels"]["severity"]]
        assert re.match(
            rf"\n\n\*\*{word}\.\*\* [^*]+\n\n\*\*Check\.\*\* .+\n\n\*\*Act\.\*\*",
            sections[name],
            re.DOTALL,
        ), name


@pytest.mark.parametrize("query", queries(), ids=lambda each: each.where)
def test_expression_asks_only_for_what_is_exported(query: Query) -> None:
    """All names and labels in expressions are exported."""
    known = exported() | OF_PROMETHEUS
    asked = selected(query.expr)
    assert asked
    for name, labels in asked:
        assert name in known, f"{query.where} asks for {name}"
        assert labels <= known[name], f"{query.where}: {name} has no {labels - known[name]}"
        assert grouped_by(query.expr) <= known[name], f"{query.where}: {name}"


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    """Each metric of ours has a panel."""
    asked = {name for query in queries() for name, _labels in selected(query.expr)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()}
    unseen = {name for name in ours - families if name.startswith("ingest_")}
    # Nothing to draw; and what ingest_buffer_used_ratio and ingest_readings_held say better:
    # rows may be on the disk too.
    assert unseen <= {
        "ingest_build_info",
        "ingest_buffer_rows",
        "ingest_buffer_rows_max",
        "ingest_readings_accepted_total",
    }


def test_grafana_finds_the_dashboards_which_name_no_data_source() -> None:
    """They take the chosen one, so any Grafana can import them."""
    grafana = DEPLOY / "grafana"
    (provider,) = document(grafana / "provisioning/dashboards/iot-ingest.yaml")["providers"]
    volumes = compose_services("compose.yaml")["grafana"]["volumes"]
    mounts = dict(each.split(":")[:2] for each in volumes)
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    for board in (grafana / "dashboards").glob("*.json"):
        uids = set(re.findall(r'"datasource": \{[^}]*"uid": "([^"]*)"', board.read_text()))
        assert all(each.startswith("${") for each in uids), board.name


# The image and Compose


def test_dockerfile_satisfies_hadolint() -> None:
    """hadolint has no finding, with all of its rules."""
    code, said = run(packaged_program("hadolint"), "Dockerfile")
    assert (code, said) == (0, "")


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_file_fits_the_specification_and_is_closed(name: str) -> None:
    """Each key and value is one that is known; ports are on the loopback, mounted files exist."""
    PyCompose.from_json(json.dumps(document(DEPLOY / name))).validate()
    services = compose_services(name)
    PyCompose.from_json(json.dumps({**document(DEPLOY / name), "services": services})).validate()
    for service in services.values():
        for port in service.get("ports", []):
            host = port if isinstance(port, str) else port["host_ip"] + ":"
            assert host.startswith("127.0.0.1:")
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists(), source


# systemd


def test_systemd_takes_the_units_and_they_may_do_little(tmp_path: Path) -> None:
    """No warning; their exposure, in tenths: 96 is a plain service, 0 is nothing at all."""
    analyze = program("systemd-analyze", "systemd")
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    python = tmp_path / "home" / ".venv" / "bin" / "python"  # the tool looks for the program
    python.parent.mkdir(parents=True)
    python.symlink_to(shutil.which("sh") or "/bin/sh")
    for each in (*UNITS, *DEPLOY.rglob("common.conf")):
        path = tmp_path / "deploy" / each.relative_to(DEPLOY)
        path.write_text(path.read_text().replace("/opt/iot-ingest", str(tmp_path / "home")))
    paths = [
        tmp_path / "deploy" / str(each.relative_to(DEPLOY)).replace("@.", "@8080.")
        for each in UNITS
    ]
    assert run(analyze, "verify", "--man=no", *paths) == (0, "")
    security = (analyze, "security", "--offline=true", "--no-pager", "--threshold=12")
    services = [each for each in paths if each.suffix == ".service"]
    code, said = run(*security, *services)
    assert code == 0, said[-200:]


# nats-server and Kubernetes


@pytest.mark.parametrize("name", ["nats.conf", "single.conf", "kubernetes.conf"])
def test_nats_server_syncs_each_message_and_lets_in_the_roles(name: str) -> None:
    """Each configuration has what the service relies on."""
    text = (DEPLOY / "nats" / name).read_text()
    for line in ("sync_interval: always", "max_payload: 8MB", 'include "roles.conf"'):
        assert re.search(rf"^ *{line}", text, re.MULTILINE), line


def selected_pods(selector: Manifest) -> set[str]:
    """Return the names of the pods that a selector means."""
    exact = selector.get("matchLabels", selector if "matchExpressions" not in selector else {})
    some = selector.get("matchExpressions", ())
    return {
        name
        for name, labels in ((name, pod["metadata"]["labels"]) for name, pod in PODS.items())
        if exact.items() <= labels.items()
        and all(labels.get(each["key"]) in each["values"] for each in some)
    }


@pytest.mark.parametrize("one", OBJECTS.values(), ids=lambda each: "-".join(named(each)))
def test_manifest_fits_the_schema_of_kubernetes(one: Manifest) -> None:
    """The schema is strict: unknown fields are errors. What an object selects is there."""
    if one["kind"] != "ServiceMonitor":
        kubernetes_validate.validate(one, "1.34", strict=True)
    assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "iot-ingest"
    spec = one.get("spec", {})
    if one["kind"] != "ServiceMonitor" and (selector := spec.get("selector")):
        pods = selected_pods(selector)
        assert pods
        for port in spec.get("ports", ()):
            for (container,) in (PODS[each]["spec"]["containers"] for each in pods):
                assert port["targetPort"] in {each["name"] for each in container["ports"]}


def test_kubectl_makes_the_objects_that_are_tested_here() -> None:
    """With the patches and the images of each folder, and the configuration of nats-server."""
    kubectl = program("kubectl", "kubernetes-client")
    made = set()
    for folder in ("base", "roles"):
        code, said = run(kubectl, "kustomize", KUBERNETES / folder)
        assert code == 0, said
        made |= {named(each) for each in yaml.safe_load_all(said)}
        assert set(re.findall(r"image: (\S+)", said)) == {"registry.example/iot-ingest:1.0.0"}
    assert {each for each in made if each[0] != "ConfigMap"} == OBJECTS.keys()


@pytest.mark.parametrize("name", PODS)
def test_strict_namespace_admits_the_pod_and_a_probe_restarts_only_a_frozen_one(name: str) -> None:
    """It has the user of the image and no rights; it is not ended while it drains."""
    spec = PODS[name]["spec"]
    (container,) = spec["containers"]
    user, own = spec["securityContext"], container["securityContext"]
    assert (user["runAsNonRoot"], user["seccompProfile"]["type"]) == (True, "RuntimeDefault")
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["readOnlyRootFilesystem"] is True
    alive = container.get("livenessProbe", {}).get("httpGet", {}).get("path")
    of_nats = {"nats": "/healthz?js-enabled-only=true"}
    assert alive == (None if ("Job", name) in OBJECTS else of_nats.get(name, "/livez"))
    if alive == "/livez":
        assert spec["terminationGracePeriodSeconds"] > Settings().drain_s_max + 10


def allowed(direction: str) -> set[tuple[str, str, int | str]]:
    """Return who may reach whom at which port, by the policies; a namespace has a / before it."""
    found: set[tuple[str, str, int | str]] = set()
    for (kind, _), each in OBJECTS.items():
        policy: dict[str, Any] = each["spec"] if kind == "NetworkPolicy" else {}
        for rule in policy.get(direction, ()):
            for other in rule["from" if direction == "ingress" else "to"]:
                spaces = other.get("namespaceSelector", {"matchLabels": {}})["matchLabels"].values()
                pods = {f"/{name}" for name in spaces} or selected_pods(other["podSelector"])
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
    writers = {"iot-ingest", "iot-ingest-writer", "iot-ingest-schema"}
    assert {pod for pod, *there in out if there == ["/databases", 5432]} == writers
    roles = {"iot-ingest-stream", "iot-ingest-gateway", "iot-ingest-writer"}
    for port, name in ((4222, "client"), (8222, "monitor")):
        assert {pod for pod, *there in out if there == ["nats", port]} == roles
        assert {there for pod, there, at in into if (pod, at) == ("nats", name)} == roles
    posts = {(pod, there) for pod, there, at in into if at == "data"}
    assert posts == {("iot-ingest", "/ingress"), ("iot-ingest-gateway", "/ingress")}
    assert {there for _, there, at in into if at == "admin"} == {"/monitoring"}
