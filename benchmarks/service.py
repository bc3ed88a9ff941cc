"""The real service for a benchmark: its own command line, its own embedded PostgreSQL.

Promises: free ports, a state folder of its own, durable defaults of the database. `stop` fails
loudly if the service lost something, or its ledger does not add up. Its buffer is memory and its
202 is `buffered`, unless flags or a target say otherwise: so were all figures on record measured.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from benchmarks.processes import REPOSITORY, Broken, Child, cpu_below_s

QUIET_S_MAX = 60.0
BUFFERED = ("--buffer", "memory", "--ack-default", "buffered")


class Cpu(NamedTuple):
    """CPU seconds so far: of the service's own process, and of its PostgreSQL."""

    service_s: float
    postgres_s: float


class Service:
    """`ingest serve` on free ports: `with Service(folder, "--writers", "1") as service:`.

    `folder` is the state folder; what is in it from an earlier start is used again. `flags` come
    after BUFFERED, so they win. `tree` is the checkout whose code runs, by its `python -m ingest`.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        port: int = 0,
        tree: Path = REPOSITORY,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self._info: dict[str, Any] | None = None
        self.child = Child(
            "service",
            [
                *(sys.executable, "-P", "-m", "ingest", "serve", "--state-dir", folder),
                *("--listen", f"127.0.0.1:{port}", "--admin-listen", "127.0.0.1:0"),
                *("--log-level", "warning", *BUFFERED, *flags),
            ],
            folder,
            env={"PYTHONPATH": str(tree), **(env or {})},
        )

    def __enter__(self) -> Self:
        try:
            self.child.wait_until(self._is_ready)
        except BaseException:
            self.child.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        code = self.child.stop()
        said = self.child.said()
        if error is None and (code != 0 or "lost=0" not in said):
            raise Broken(f"the service ended with code {code}: {said}")

    def _is_ready(self) -> bool:
        info = self.folder / "service.json"
        if self._info is None and info.exists():
            found: dict[str, Any] = json.loads(info.read_text())
            if found["pid"] == self.child.pid:  # else of a start before
                self._info = found
        return self._info is not None and self.state() == "accepting"

    @property
    def info(self) -> dict[str, Any]:
        """What it has published about itself."""
        assert self._info is not None, "enter it first"
        return self._info

    @property
    def port(self) -> int:
        """The data port."""
        return int(self.info["listen"].rpartition(":")[2])

    @property
    def database_url(self) -> str:
        """Its embedded database, through a unix socket."""
        return str(self.info["database_url"])

    def _get(self, path: str) -> str:
        url = f"http://{self.info['admin_listen']}{path}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())

    def state(self) -> str:
        """Return the state that /readyz tells."""
        try:
            return str(json.loads(self._get("/readyz"))["state"])
        except urllib.error.HTTPError as error:
            return str(json.loads(error.read())["state"])
        except OSError:
            return "starting"

    def samples(self) -> dict[str, float]:
        """Return all samples of /metrics by their text."""
        lines = (line for line in self._get("/metrics").splitlines() if line[:1] != "#")
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def committed(self) -> float:
        """Return how many readings are in the table by now."""
        return self.samples()["ingest_readings_committed_total"]

    def quiet(self, *, poll_s: float = 0.01) -> dict[str, float]:
        """Wait until nothing is held; return the samples. Raises Broken if the law is broken."""
        end_s = time.monotonic() + QUIET_S_MAX
        while True:
            samples = self.samples()
            if samples["ingest_readings_held"] == 0:
                break
            if time.monotonic() > end_s:
                raise Broken(f"the service still holds readings after {QUIET_S_MAX:g} s")
            time.sleep(poll_s)
        if samples["ingest_ledger_imbalance_rows"] or samples["ingest_readings_dropped_total"]:
            raise Broken("the service's ledger does not add up")
        return samples

    def cpu(self) -> Cpu:
        """Return the CPU seconds so far."""
        return Cpu(self.child.cpu_s(), cpu_below_s(self.child.pid))

    def rss_mib(self) -> float:
        """Return the memory of the service's own process now."""
        return self.child.rss_mib()
