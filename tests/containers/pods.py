"""The pods of deploy/kubernetes, run by podman from what documented commands give to a cluster.

There is no cluster: no probe, no Service, no policy, and nobody starts a pod again. Podman does not
give secrets to the group of `fsGroup`, so here all users of the pod may read them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tests.containers.engine import IMAGE, Failed, command
from tests.support.documents import DOCUMENTS, REPOSITORY, fences
from tests.system.fleet import TABLE_SQL

Object = dict[str, Any]  # of Kubernetes, or a part of one
DATABASE = Path(__file__).parent / "database.yaml"
PSQL = ("podman", "exec", "timescaledb-server", "psql", "-U", "postgres", "-d", "telemetry", "-qAt")
NETWORK = "podman-default-kube-network"
DATA_PORT = 8080
DONE_S_MAX = 90
# They write down what a cluster would be told.
STAND_INS = {
    "docker": "",
    "psql": "",
    "kubectl": """
        case "$*" in
        *" create secret "*) KUBECTL "$@" --dry-run=client --output yaml ;;
        "apply -k "*) KUBECTL kustomize "$3" ;;
        *) exit ;;
        esac >>objects && echo --- >>objects""",
}


async def objects_of(document: str, folder: str, here: Path) -> list[Object]:
    """Run the commands by which `document` installs `deploy/kubernetes/<folder>`, in `here`.

    Return what they give to a cluster.
    """
    (script,) = (
        each.text
        for each in fences(DOCUMENTS[document])
        if f"-k deploy/kubernetes/{folder}\n" in each.text
    )
    ignored = shutil.ignore_patterns("secrets")
    shutil.copytree(REPOSITORY / "deploy", here / "deploy", ignore=ignored)
    for name, login in (("writer", "ingest:secret"), ("admin", "postgres:admin")):
        (here / f"{name}_url").write_text(f"postgresql://{login}@timescaledb:5432/telemetry\n")
    shims = here / "shims"
    shims.mkdir()
    for name, text in STAND_INS.items():
        real = text.replace("KUBECTL", shutil.which("kubectl") or "kubectl")
        (shims / name).write_text(f"#!/bin/sh\n{real}\n")
        (shims / name).chmod(0o755)
    path = f"PATH={shims}:{os.environ['PATH']}"
    words = ("env", path, "REGISTRY=registry.example", "ADMIN_URL=", "sh", "-euc", script)
    await command(*words, folder=here)
    made = yaml.safe_load_all((here / "objects").read_text())
    return [each for each in made if each is not None]


class Pods:
    """The pods of these objects, beside a database that has the role `ingest`."""

    def __init__(self, objects: list[Object], folder: Path) -> None:
        self._objects = objects
        self._folder = folder
        self._played: list[Path] = []

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        """Start all pods but those of Jobs; at the end remove all of them, and their volumes."""
        try:
            await self._play("timescaledb", [*yaml.safe_load_all(DATABASE.read_text())])
            await self._until(*PSQL, "-c", "create role ingest login password 'secret'")
            for each in self._objects:
                if each["kind"] in {"StatefulSet", "Deployment"}:
                    for number in range(each["spec"].get("replicas", 2)):  # 2: of the autoscaler
                        await self._start(each, f"{each['metadata']['name']}-{number}")
            yield
        finally:
            await self._remove()

    async def job(self, name: str) -> None:
        """Run a Job to its end, with as many tries as it needs. Raises Failed."""
        (job,) = (
            each
            for each in self._objects
            if (each["kind"], each["metadata"]["name"]) == ("Job", name)
        )
        await self._start(job, name)
        container = f"{name}-{job['spec']['template']['spec']['containers'][0]['name']}"
        end_s = time.monotonic() + DONE_S_MAX
        while (await command("podman", "wait", container)).strip() != "0":
            if time.monotonic() > end_s:
                raise Failed(await command("sh", "-c", f"podman logs {container} 2>&1"))
            await self.start(container)

    async def _start(self, made: Object, name: str) -> None:
        """Start one pod of a set, with volumes of its own; others find it as `<name>.<set>`."""
        pod = json.loads(json.dumps(made["spec"]["template"]))
        pod |= {"apiVersion": "v1", "kind": "Pod"}
        pod["metadata"]["name"] = name
        (container,) = pod["spec"]["containers"]
        container["image"] = IMAGE
        more = [each for each in self._objects if each["kind"] == "Secret"]
        volumes = pod["spec"]["volumes"]
        for claim in made["spec"].get("volumeClaimTemplates", ()):
            own = f"{claim['metadata']['name']}-{name}"
            kind = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
            more.append({**kind, "metadata": {"name": own}, "spec": claim["spec"]})
            place = {"persistentVolumeClaim": {"claimName": own}}
            volumes.append({"name": claim["metadata"]["name"], **place})
        for volume in volumes:
            if "projected" in volume:
                more.append(self._joined(volume.pop("projected")))
                volume["secret"] = {"secretName": more[-1]["metadata"]["name"]}
            if "secret" in volume:
                volume["secret"]["defaultMode"] = 0o444
        alias = f"{name}.{made['metadata']['name']}"
        ports = [each["containerPort"] for each in container.get("ports", ())]
        publish = [f"--publish=127.0.0.1::{port}" for port in ports if port == DATA_PORT]
        await self._play(name, [*more, pod], f"--network={NETWORK}:alias={alias}", *publish)

    def _joined(self, projected: Object) -> Object:
        """Return one secret of all that a volume shows together, which podman cannot do."""
        data: dict[str, Object] = {"data": {}, "stringData": {}}
        for source in projected["sources"]:
            ((kind, given),) = source.items()
            (one,) = (
                each
                for each in self._objects
                if each["kind"].lower() == kind.lower()
                and re.fullmatch(rf"{given['name']}(-\w+)?", each["metadata"]["name"])
            )
            data["data" if kind == "secret" else "stringData"] |= one["data"]
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "joined"}, **data}

    async def _play(self, name: str, objects: list[Object], *flags: str) -> None:
        path = self._folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump_all(objects))
        self._played.append(path)
        await command("podman", "kube", "play", *flags, str(path))

    async def _until(self, *words: str) -> None:
        """Run a command until it succeeds. Raises Failed with what it says in the end."""
        end_s = time.monotonic() + DONE_S_MAX
        while True:
            try:
                await command(*words)
            except Failed:
                if time.monotonic() > end_s:
                    raise
                await asyncio.sleep(1)
            else:
                return

    async def _remove(self) -> None:
        """Remove the pods, and what podman has made for them: `kube down` keeps what two share."""
        made = [
            (each["kind"], each["metadata"]["name"])
            for path in self._played
            for each in yaml.safe_load_all(path.read_text())
        ]
        for kinds, words in (
            ({"Pod"}, ("pod", "rm", "--force", "--ignore", "--time", "1")),
            ({"Secret", "ConfigMap", "PersistentVolumeClaim"}, ("volume", "rm", "--force")),
            ({"Secret"}, ("secret", "rm", "--ignore")),
        ):
            await command("podman", *words, *{name for kind, name in made if kind in kinds})

    async def running(self) -> list[tuple[str, str]]:
        """Return set and container of all that run."""
        said = json.loads(await command("podman", "ps", "--pod", "--format", "json"))
        ours = {each.stem for each in self._played}
        names = [e["Names"][0] for e in said if e["PodName"] in ours and not e["IsInfra"]]
        return sorted((re.sub(r"-\d+-\w+$", "", each), each) for each in names)

    async def to_kill(self) -> list[tuple[str, str]]:
        """Return set and container of the first pod of each set."""
        return [*dict(reversed(await self.running())).items()]

    async def kill(self, container: str) -> None:
        """Kill the container of a pod with SIGKILL; so the pod ends."""
        await command("podman", "kill", "--signal", "KILL", container)

    async def start(self, container: str) -> None:
        """Start a container that has ended with its pod, once podman is done with that end."""
        pod = container.rpartition("-")[0]
        asked = ("podman", "pod", "inspect", pod, "--format", "{{.State}}")
        while (await command(*asked)).strip() != "Exited":  # noqa: ASYNC110  podman tells nobody
            await asyncio.sleep(0.1)
        await command("podman", "pod", "start", pod)

    async def url(self, service: str, port: int, index: int = 1) -> str:
        """Return where a port of a pod is published."""
        (name,) = (
            name for _, name in await self.running() if name.startswith(f"{service}-{index - 1}-")
        )
        return f"http://{(await command('podman', 'port', name, str(port))).strip()}"

    async def table(self) -> list[Object]:
        """Return the rows of the table, as fleet.check_table wants them."""
        sql = f"select coalesce(json_agg(t), '[]') from ({TABLE_SQL}) t"
        rows: list[Object] = json.loads(await command(*PSQL, "-c", sql))
        return rows

    async def stop(self, service: str) -> None:
        """Stop the pods of a set, as a cluster does; start them again. Raises Failed for a loss."""
        names = [name for each, name in await self.running() if each == service]
        await asyncio.gather(*(command("podman", "stop", each) for each in names))
        logs = [await command("sh", "-c", f"podman logs {each} 2>&1") for each in names]
        await asyncio.gather(*(self.start(each) for each in names))
        for log in logs:
            if " lost=0" not in log:
                raise Failed(f"the stop did not say lost=0:\n{log[-2000:]}")
