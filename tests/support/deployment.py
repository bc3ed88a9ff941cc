"""Reads the files of deploy/ for tests: YAML, the dashboard's queries, PromQL, the Dockerfile.

Also the commands in their comments, and the output of a program about them.

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
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]

from ingest.admin.exposition import Exposition, Shown
from ingest.app.metrics_and_causes import GAUGES, values_of
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger, read
from ingest.model.ports import BufferStats
from ingest.mqtt import service as mqtt
from ingest.mqtt import tally as mqtt_tally
from ingest.mqtt.tally import MqttTally
from ingest.roles.forward import forwarder as forward_tally
from ingest.roles.forward import service as forwarding
from ingest.roles.forward.forwarder import ForwardTally

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
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


def manifests() -> list[Manifest]:
    """Return the Kubernetes objects of both folders, as they are in their files."""
    paths = sorted(each for folder in ("base", "roles") for each in (KUBERNETES / folder).glob("*"))
    return [one for each in paths if each.stem != "kustomization" for one in documents(each)]


def named(one: Manifest) -> tuple[str, str]:
    """Return kind and name of a Kubernetes object."""
    return one["kind"], one["metadata"]["name"]


def environment_of(pod: Manifest) -> dict[str, str]:
    """Return the variables that a pod's container sets beside the image's."""
    (container,) = pod["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def shown_in_head(path: Path) -> list[list[str]]:
    """Return the commands in a file's comments (indented by three blanks), as words."""
    lines = [each[4:] for each in path.read_text().splitlines() if each.startswith("#   ")]
    commands = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [shlex.split(each, comments=True) for each in commands]


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
    ledger.rejected["empty"] += 1
    ledger.posts_refused["empty"] += 1
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
        for family in Exposition(lambda shown=shown: [shown]).collect():  # type: ignore[misc]
            for sample in family.samples:
                labels = frozenset(sample.labels) | found.get(sample.name, frozenset())
                found[sample.name] = labels | TARGET_LABELS
    return found


def image_environment() -> dict[str, str]:
    """Return what the ENV instructions of the image's last stage set."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    last = text.replace("\\\n", " ").rpartition("\nFROM ")[2]
    words = " ".join(re.findall(r"^ENV (.*)", last, re.MULTILINE))
    return dict(each.split("=", 1) for each in shlex.split(words))
