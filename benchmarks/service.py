"""The real service for a benchmark: its own command line, its own embedded PostgreSQL.

Promises: free ports, a state folder of its own, durable defaults of the database. The end raises
Broken if the service lost a reading, or if its balance is not 0. Its buffer is memory and its 202
is `buffered`, unless flags or a target name others: all recorded figures were measured so.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from benchmarks.processes import REPOSITORY, Broken, Child, answers, cpu_below_s, fetch

QUIET_S_MAX = 60.0
# The floors and peers write readings of one old day into the same table, and make no partitions. A
# variable, and no flag: flags win.
PLAIN_TABLE = {"INGEST_PARTITION_SPAN": "none"}
BUFFERED = ("--buffer", "memory", "--ack-default", "buffered")


class Cpu(NamedTuple):
    """CPU seconds so far: of the service's own process, and of its PostgreSQL."""

    service_s: float
    postgres_s: float


class Service:
    """`ingest serve` on free ports: `with Service(folder, "--writers", "1") as service:`.

    `folder` is the state folder; the service uses again what an earlier start left there. `command`
    is `serve` or `up`. `flags` come after BUFFERED, so they win; `up` gets no BUFFERED. `tree` is
    the checkout whose code runs (`python -m ingest`; or `module`, which is told the same), `env`
    takes the place of PLAIN_TABLE.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        port: int = 0,
        command: str = "serve",
        module: str = "ingest",
        tree: Path = REPOSITORY,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self.info: dict[str, Any] = {}  # of its service.json, once entered
        self.child = Child(
            "service",
            [
                *(sys.executable, "-P", "-m", module, command, "--state-dir", folder),
                *("--listen", f"127.0.0.1:{port}", "--admin-listen", "127.0.0.1:0"),
                *("--log-level", "warning", *(BUFFERED if command == "serve" else ()), *flags),
            ],
            folder,
            env={"PYTHONPATH": str(tree), **(PLAIN_TABLE if env is None else env)},
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
        output = self.child.output()
        if error is None and (code != 0 or "lost=0" not in output):
            raise Broken(f"the service ended with code {code}: {output}")

    def _is_ready(self) -> bool:
        path = self.folder / "service.json"
        if not self.info and path.exists():
            found = json.loads(path.read_text())
            if found["pid"] == self.child.pid:  # else it is of an earlier start
                self.info = found
        return bool(self.info) and answers(self.admin_url("readyz"), '"accepting"')

    def admin_url(self, path: str) -> str:
        """Return the URL of a path of the admin port."""
        return f"http://{self.info['admin_listen']}/{path}"

    @property
    def port(self) -> int:
        """The data port."""
        return int(self.info["listen"].rpartition(":")[2])

    @property
    def database_url(self) -> str:
        """Its embedded database, through a unix socket."""
        return str(self.info["database_url"])

    def samples(self) -> dict[str, float]:
        """Return all samples of /metrics by their text."""
        lines = (line for line in fetch(self.admin_url("metrics")).splitlines() if line[:1] != "#")
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def committed(self) -> float:
        """Return how many readings are in the table by now."""
        return self.samples()["ingest_readings_committed_total"]

    def quiet(self, *, poll_s: float = 0.01, within_s: float = QUIET_S_MAX) -> dict[str, float]:
        """Wait until the service has written all readings; return the samples.

        Raises Broken if that takes longer than `within_s`, or if the balance is not 0.
        """
        end_s = time.monotonic() + within_s
        while (samples := self.samples())["ingest_readings_held"]:
            if time.monotonic() > end_s:
                raise Broken(f"the service still has readings after {within_s:g} s")
            time.sleep(poll_s)
        if samples["ingest_ledger_imbalance_rows"] or samples["ingest_readings_dropped_total"]:
            raise Broken("the service's balance is not 0, or it dropped readings")
        return samples

    def cpu(self) -> Cpu:
        """Return the CPU seconds so far."""
        return Cpu(self.child.cpu_s(), cpu_below_s(self.child.pid))
