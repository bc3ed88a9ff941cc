"""Records the answers to the requests of requests.jsonl from the real service of a checkout.

`python -m tests.path.recorded.record --checkout FOLDER` (default: this repository) starts the
services of that code with its embedded PostgreSQL, sends every request of the file, and writes
them with their answers. Run it again only if an answer must change, or for a new request: a line
with the fields of `Case`, before the last line. `at` is a situation of stage.py. Each post has a
device of its own (it begins with d or q), so that a row of the table shows its post; the tokens of
our page are derived from the fixed token of service.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tests.path.recorded.exchange import Case
from tests.path.recorded.service import Running, run_sql
from tests.path.recorded.stage import STUCK, WORKING, stage

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
CORPUS = HERE / "requests.jsonl"


@asynccontextmanager
async def databases(checkout: Path, folder: Path, *names: str) -> AsyncIterator[dict[str, str]]:
    """Run the embedded PostgreSQL of a checkout; give the URLs of fresh databases in it."""
    async with Running(checkout, folder / "database", "", {"drain_s_max": 0}) as holder:
        await holder.wait_state("accepting")
        url = str(holder.info["database_url"])
        await run_sql(url, *(f"create database {name}" for name in names))
        yield {name: url.replace("@/postgres?", f"@/{name}?") for name in names}
        holder.signal(15)
        holder.ended()


async def record(checkout: Path, folder: Path) -> list[dict[str, Any]]:
    """Return the corpus: each request with its answers; at the end the kept readings."""
    cases = [Case.of(line) for line in read() if "send" in line]
    async with (
        databases(checkout, folder, WORKING, STUCK) as urls,
        stage(checkout, folder, urls) as playing,
    ):
        kept = await playing.play(cases)
    return [*(case.line(*playing.results[case.name]) for case in cases), {"kept": kept}]


def read(path: Path = CORPUS) -> list[dict[str, Any]]:
    """Read a recorded corpus: the requests with their answers; at the end the kept readings."""
    answers: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    with path.open() as file:
        for line in map(json.loads, file):
            if "answer" in line:
                answers[line["answer"]] = line["is"]
            elif "got" in line:
                lines.append({**line, "got": [answers[each] for each in line["got"]]})
            else:
                lines.append(line)
    return lines


def write(lines: list[dict[str, Any]], path: Path) -> None:
    """Write a corpus: each different answer once, under a hash of it, then the requests."""
    answers: dict[str, Any] = {}
    short: list[dict[str, Any]] = []
    for line in lines:
        keys = [_key_of(answer) for answer in line.get("got", ())]
        answers |= dict(zip(keys, line.get("got", ()), strict=True))
        short.append({**line, "got": keys} if "got" in line else line)
    first = [{"answer": key, "is": answer} for key, answer in answers.items()]
    path.write_text("".join(_text(line) + "\n" for line in [*first, *short]))


def _key_of(answer: Any) -> str:
    return blake2b(_text(answer).encode(), digest_size=4).hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Record and write the file."""
    parser = argparse.ArgumentParser(prog="python -m tests.path.recorded.record")
    parser.add_argument("--checkout", type=Path, default=REPOSITORY, help="the code to record")
    parser.add_argument("--to", type=Path, default=CORPUS, help="the file to write")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ingest-record-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        lines = asyncio.run(record(chosen.checkout.resolve(), folder))
    write(lines, chosen.to)
    sys.stdout.write(f"{len(lines) - 1} requests recorded in {chosen.to}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
