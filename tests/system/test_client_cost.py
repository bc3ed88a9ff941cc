"""The benchmark of the client runs as its words say, and its figures come from whole runs."""

from __future__ import annotations

import json
from pathlib import Path

from tests.system.service import run_command


async def test_benchmark_of_the_client_prints_both_and_their_ratio(tmp_path: Path) -> None:
    """Two processes a run, all posts accepted, the ratio that of the two medians."""
    figures = tmp_path / "figures.ndjson"
    flags = ("--runs", 1, "--requests", 500, "--json", figures)
    done = await run_command("benchmarks.client_cost", *flags)
    assert done.code == 0, done.stderr
    cpu_us = json.loads(figures.read_text())["cpu_us_per_request"]
    loadgen_us, aiohttp_us = cpu_us["loadgen"][0], cpu_us["aiohttp"][0]
    _, loadgen, aiohttp, ratio = (line.split() for line in done.stdout.splitlines())
    assert loadgen[:3] == ["loadgen", f"{loadgen_us:.1f}", "us"]
    assert aiohttp[:3] == ["aiohttp", f"{aiohttp_us:.1f}", "us"]
    assert ratio == ["ratio", f"{aiohttp_us / loadgen_us:.2f}"]
