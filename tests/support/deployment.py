"""Reads the files of deploy/ for tests: YAML, the dashboard's queries, PromQL, the Dockerfile.

Also the commands in their comments, and the output of a program about them or a spoilt copy.

Does not: judge; the tests say what must be true of the files.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]

from ingest.admin.exposition import Exposition, Shown
from ingest.app import forwarding, mqtt
from ingest.app.metrics import GAUGES, values_of
from ingest.forward import tally as forward_tally
from ingest.forward.tally import ForwardTally
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger
from ingest.model.metrics import read
from ingest.model.ports import BufferStats
from ingest.mqtt import tally as mqtt_tally
from ingest.mqtt.tally import MqttTally

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
BASE, ROLES = DEPLOY / "kubernetes" / "base", DEPLOY / "kubernetes" / "roles"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "iot-ingest.json"
TARGET_LABELS = frozenset(
    {"job", "instance"}
)  # Prometheus adds these labels to all metrics that it scrapes
Manifest = dict[str, Any]  # a Kubernetes object, or a part of one
# Series that Prometheus itself makes: for a target, and for the alerts.
OF_PROMETHEUS = {
    "up": TARGET_LABELS,
    "ALERTS": TARGET_LABELS | {"alertname", "alertstate", "severity"},
}


def program(name: str, package: str) -> str:
    """Return the path of a program; else skip the test with the command that installs it."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        pytest.skip(f"no {name} here: apt-get install {package}")
    return found


def packaged_program(name: str) -> str:
    """Return the path of a program that came with one of our Python packages."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def run(*words: str | Path, cwd: Path = DEPLOY) -> tuple[int, str]:
    """Run a program to its end; return its exit code and its output."""
    done = subprocess.run(
        [str(each) for each in words], cwd=cwd, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def copy_of(tmp_path: Path, name: str, old: str, new: str) -> Path:
    """Spoil a copy of the whole folder; return the path of the spoilt file in it."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    path = tmp_path / "deploy" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def documents(path: Path) -> list[Any]:
    """Return the documents of a YAML file; the caller may change them."""
    return deepcopy(_parsed(path.read_text()))


@cache
def _parsed(text: str) -> list[Any]:
    """Hundreds of tests look at the same files; libyaml takes a tenth of the time."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [each for each in yaml.load_all(text, Loader=loader) if each is not None]


def document(path: Path) -> Any:
    """Return the one document of a YAML file."""
    (only,) = documents(path)
    return only


def compose_services(name: str) -> dict[str, Any]:
    """Return the services of a Compose file, with what they take from another file."""
    found: dict[str, Any] = {}
    for service, own in document(DEPLOY / name)["services"].items():
        merged = dict(own)
        if (source := merged.pop("extends", None)) is not None:
            base = document(DEPLOY / source["file"])["services"][source["service"]]
            volumes = {  # by their place in the container
                each.split(":")[1]: each
                for each in (*base.get("volumes", ()), *own.get("volumes", ()))
            }
            merged = {**base, **merged, "volumes": list(volumes.values())}
        found[service] = merged
    return found


def manifests(folder: Path = BASE) -> list[Manifest]:
    """Return the Kubernetes objects that a folder makes, as `kubectl kustomize` does.

    Its images keep their short names, and deploy/nats is not looked at.
    """
    made = document(folder / "kustomization.yaml")
    found: list[Manifest] = []
    for each in made["resources"]:
        if each.endswith(".yaml"):
            found += documents(folder / each)
        elif each == "../base":
            found += manifests(BASE)
    for each in made.get("patches", ()):
        (patch,) = _parsed(each["patch"])
        (at,) = (number for number, one in enumerate(found) if named(one) == named(patch))
        if patch.get("$patch") == "delete":
            del found[at]
        else:
            found[at]["spec"] |= patch["spec"]
    return found


def named(one: Manifest) -> tuple[str, str]:
    """Return kind and name of a Kubernetes object."""
    return one["kind"], one["metadata"]["name"]


def manifest(kind: str, name: str = "iot-ingest", folder: Path = BASE) -> Manifest:
    """Return one Kubernetes object."""
    (found,) = (each for each in manifests(folder) if named(each) == (kind, name))
    return found


def service_pod() -> Manifest:
    """Return the template of the service's pods."""
    found: Manifest = manifest("StatefulSet")["spec"]["template"]
    return found


def schema_pod() -> Manifest:
    """Return the template of the pod that makes the table."""
    found: Manifest = manifest("Job", "iot-ingest-schema")["spec"]["template"]
    return found


def restricted_faults(spec: Manifest) -> set[str]:
    """Return the rules of the level `restricted` (and baseline) that a pod breaks."""
    pod_context = spec.get("securityContext", {})
    faults = {each for each in ("hostNetwork", "hostPID", "hostIPC") if spec.get(each)}
    kinds = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    faults |= {"volumes" for each in spec.get("volumes", []) if not each.keys() & kinds}
    for container in (*spec["containers"], *spec.get("initContainers", [])):
        own = container.get("securityContext", {})
        context = {**pod_context, **own}
        if own.get("privileged"):
            faults.add("privileged")
        if own.get("allowPrivilegeEscalation") is not False:
            faults.add("allowPrivilegeEscalation")
        if "ALL" not in own.get("capabilities", {}).get("drop", []):
            faults.add("capabilities")
        if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
            faults.add("capabilities")
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
            faults.add("runAsNonRoot")
        if context.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
            faults.add("seccompProfile")
        if any("hostPort" in each for each in container.get("ports", [])):
            faults.add("hostPort")
        if context.keys() & {"procMount", "seLinuxOptions", "sysctls", "appArmorProfile"}:
            faults.add("unusual")  # some may be allowed; then list them here
    return faults


def secrets_of(pod: Manifest) -> list[str]:
    """Return the names of the secrets that a pod mounts."""
    volumes = pod["spec"]["volumes"]
    return [each["secret"]["secretName"] for each in volumes if "secret" in each]


def environment_of(pod: Manifest) -> dict[str, str]:
    """Return the variables that a pod's container sets beside the image's."""
    (container,) = pod["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def shown_in_head(path: Path) -> list[list[str]]:
    """Return the commands in a file's comments (indented by three blanks), as words."""
    lines = [each[4:] for each in path.read_text().splitlines() if each.startswith("#   ")]
    commands = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [shlex.split(each, comments=True) for each in commands]


def uncommented(path: Path, first: str) -> str:
    """Return a YAML text in which the comment from the line `first` on is no comment."""
    lines = path.read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.strip() == f"# {first}")
    for number in range(start, len(lines)):
        if not lines[number].lstrip().startswith("# "):
            break
        lines[number] = lines[number].replace("# ", "", 1)
    return "\n".join(lines) + "\n"


def alerts() -> list[dict[str, Any]]:
    """Return the rules of alerts.yml, in order."""
    return [rule for group in document(DEPLOY / "alerts.yml")["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard that have a query, in order."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [each for each in found if each["type"] != "row"]


class Query(NamedTuple):
    """One PromQL expression, and its place."""

    where: str
    expr: str


def panel_queries() -> list[Query]:
    """Return all queries of the dashboard's panels."""
    return [
        Query(f"panel {panel['title']!r} {target['refId']}", target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]


def queries() -> list[Query]:
    """Return all expressions of the dashboard, its annotations, and the alerts."""
    annotations = json.loads(DASHBOARD.read_text())["annotations"]["list"]
    return [
        *panel_queries(),
        *(Query(f"annotation {each['name']!r}", each["expr"]) for each in annotations),
        *(Query(f"alert {rule['alert']}", rule["expr"]) for rule in alerts()),
    ]


def concrete(expr: str, *, interval: str = "1m") -> str:
    """Return an expression as Grafana would send it: all jobs, all instances."""
    return (
        expr.replace("$__rate_interval", interval).replace("$job", ".*").replace("$instance", ".*")
    )


class Selected(NamedTuple):
    """A series that an expression selects, and the labels that it filters by."""

    name: str
    labels: frozenset[str]


def selected(expr: str) -> list[Selected]:
    """Return the series that a PromQL expression selects. Raises ValueError if it is wrong."""
    found: list[Selected] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = node.matchers.matchers
            found.append(Selected(node.name or "", frozenset(each.name for each in matchers)))
        return True

    promql_parser.walk(promql_parser.parse(concrete(expr)), visit)
    return found


def grouped_by(expr: str) -> set[str]:
    """Return the labels that an expression groups by."""
    found: set[str] = set()

    def visit(node: promql_parser.Expr) -> bool:
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
            found.update(modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(concrete(expr)), visit)
    return found


@cache
def exported() -> dict[str, frozenset[str]]:
    """Return every series that the service exports, by name, with its labels.

    From the collector itself, once each kind of event has happened.
    """
    ledger = Ledger()
    stats = BufferStats(0, 0, 0, 0, 0, 0, 0, None)
    ledger.gauges = Gauges(lambda: stats, DeadLetterStats, lambda: True, lambda: "schema")
    ledger.request_answered("/v1/readings", 202, 0.1)
    ledger.readings_rejected("empty", 1)
    ledger.post_refused("empty")
    ledger.connection_closed("header_late")
    ledger.batch_stored("copy", 0.1, 1, 0)
    ledger.gauges = ledger.gauges._replace(
        figures=lambda: {name: {"writer": 1} if each.labels else 1 for name, each in GAUGES.items()}
    )
    found: dict[str, frozenset[str]] = {}
    sent, taken = ForwardTally(), MqttTally()
    sent.posts["204"] = taken.posts["202"] = 1
    forwarded = (
        *read(forward_tally.METRICS, sent),
        *((each, 0) for each in forwarding.OF_NOW),
    )
    bridged = (*read(mqtt_tally.METRICS, taken), *((each, 0) for each in mqtt.OF_NOW))
    for shown in (
        Shown("up", "0", values_of(ledger), os.getpid()),
        Shown("", "0", forwarded, None, ("forward", "x")),
        Shown("", "0", bridged, None, ("mqtt", "x")),
    ):
        for family in Exposition(lambda shown=shown: [shown]).families():  # type: ignore[misc]
            for sample in family.samples:
                labels = frozenset(sample.labels) | found.get(sample.name, frozenset())
                found[sample.name] = labels | TARGET_LABELS
    return found


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: `RUN` and its text."""

    word: str
    text: str


def dockerfile() -> list[list[Instruction]]:
    """Return the stages of the Dockerfile, each with its instructions, FROM first."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: list[list[Instruction]] = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            stages.append([])
        stages[-1].append(Instruction(word, rest.strip()))
    return stages


def assignments(text: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values of `A=1 B=2`."""
    for each in shlex.split(text):
        name, _, value = each.partition("=")
        yield name, value


def image_environment() -> dict[str, str]:
    """Return what the ENV instructions of the image's last stage set."""
    texts = (each.text for each in dockerfile()[-1] if each.word == "ENV")
    return {name: value for text in texts for name, value in assignments(text)}
