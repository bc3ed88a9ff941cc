"""A real Prometheus that a test starts on a service, with the files of deploy/ and shorter times.

All intervals, and `for:` of every alert, are one second; the rest is unchanged.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml  # type: ignore[import-untyped]

from tests.support.deployment import DEPLOY, concrete, document, program

SCRAPE_S = 1
RATE_INTERVAL = "10s"


def hurried(*targets: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return prometheus.yml and alerts.yml with short times, on other targets."""
    config: dict[str, Any] = document(DEPLOY / "prometheus.yml")
    config["global"] = dict.fromkeys(config["global"], f"{SCRAPE_S}s")
    (job,) = config["scrape_configs"]
    job["scrape_timeout"] = f"{SCRAPE_S}s"
    job["static_configs"] = [{"targets": list(targets)}]
    rules: dict[str, Any] = document(DEPLOY / "alerts.yml")
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "1s"
    return config, rules


class Prometheus:
    """One server. `async with Prometheus(folder, port, *targets) as prometheus:`."""

    def __init__(self, folder: Path, port: int, *targets: str) -> None:
        self._folder = folder
        self._url = f"http://127.0.0.1:{port}"
        self._words = [
            *(program("prometheus", "prometheus"), f"--config.file={folder}/prometheus.yml"),
            *(f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"),
            "--scrape.discovery-reload-interval=100ms",  # 5 s by default
        ]
        folder.mkdir(parents=True)
        config, rules = hurried(*targets)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        with (self._folder / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._words, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()
        if self._process is not None:
            if self._process.returncode is None:
                self._process.terminate()
            await self._process.wait()

    async def _get(self, path: str, **query: str) -> Any:
        async with self._session.get(f"{self._url}/api/v1/{path}", params=query) as reply:
            document = json.loads(await reply.text())
            assert document["status"] == "success", f"{query}: {document}"
            return document["data"]

    async def query(self, expr: str) -> list[dict[str, Any]]:
        """Evaluate an expression of deploy/ now; return its series, those of NaN left out."""
        found = await self._get("query", query=concrete(expr, interval=RATE_INTERVAL))
        assert found["resultType"] == "vector", expr
        return [each for each in found["result"] if each["value"][1] != "NaN"]

    async def wait_target(self, within_s: float = 30) -> None:
        """Wait until Prometheus has scraped the service."""
        async with asyncio.timeout(within_s):
            while True:
                try:
                    if any(each["value"][1] == "1" for each in await self.query("up")):
                        return
                except (aiohttp.ClientError, ValueError):  # not there yet, or not ready
                    pass
                await asyncio.sleep(0.1)

    async def firing(self) -> dict[str, dict[str, str]]:
        """Return the alerts that fire: their labels by name."""
        found = (await self._get("alerts"))["alerts"]
        return {
            each["labels"]["alertname"]: each["labels"]
            for each in found
            if each["state"] == "firing"
        }

    async def wait_firing(self, name: str, within_s: float = 30) -> dict[str, str]:
        """Wait until an alert fires; return its labels."""
        async with asyncio.timeout(within_s):
            while True:
                if labels := (await self.firing()).get(name):
                    return labels
                await asyncio.sleep(0.2)

    async def wait_silent(self, name: str, within_s: float = 30) -> None:
        """Wait until an alert does not fire any more."""
        async with asyncio.timeout(within_s):
            while name in await self.firing():  # noqa: ASYNC110  another process
                await asyncio.sleep(0.2)
