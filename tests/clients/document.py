"""Programs that read the OpenAPI document: one that asks by it, and one that makes a client of it.

schemathesis makes requests; each answer must be one that the document knows. The client that
openapi-python-client makes must post, and understand the answers.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.clients.running import World, make_token
from tests.support.processes import output_of
from tests.system.service import REPOSITORY, environment

NAME, MAKER = "schemathesis", "openapi-python-client"
SENDER = Path(__file__).parent / "senders" / "generated.py"
# One item; two items with three readings; an item without a device.
WANTED = "202 1\n202 3\n422 all_invalid\n"
ROUND_S_MAX = 900.0
# Of a round for each operation. Operations without parameters need only a few requests.
EXAMPLES_MAX = 400
_CHECKS = (
    *("status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "only_503"),
)
_REQUESTS = re.compile(r'^ingest_http_requests_total\{code="(\d+)"')


class Found(NamedTuple):
    """What came of it: the answers by status, and what was said if one was not as it must be."""

    answers: Counter[int]
    fault: str
    name: str = NAME

    def shown(self) -> str:
        """Return it as a line."""
        counts = ", ".join(f"{status}: {count:,}" for status, count in sorted(self.answers.items()))
        return f"{self.name}: {self.answers.total():,} requests ({counts})"


async def try_made_client(world: World, programs: Path) -> Found:
    """Make a client from the document, and post with it."""
    token = await make_token(world.service.state_dir, MAKER)
    folder = world.service.state_dir.parent
    reply = await world.service.request("GET", f"{world.service.url}/openapi.json")
    (folder / "openapi.json").write_text(reply.text)
    made, before = folder / "made", await _answers(world)
    words = ("generate", "--path", "openapi.json", "--output-path", str(made), "--overwrite")
    fault, _ = await _run(folder, programs / MAKER, *words)
    sending = (str(SENDER), str(made), world.service.url, token)
    failed, told = await _run(folder, programs / "python", *sending)
    fault = fault or failed or ("" if told == WANTED else f"it was told:\n{told}")
    rows = [row for row in await world.rows() if row.device == "made"]
    if not fault and len(rows) != 4:
        fault = f"{len(rows)} of 4 readings are in the table"
    return Found(await _answers(world) - before, fault, MAKER)


async def try_document(world: World, programs: Path, *, requests: int, seed: int) -> Found:
    """Send at least so many requests, in rounds of one seed each; stop at the first fault.

    A control comes first: a document that lacks an answer must be found wrong.
    """
    token = await make_token(world.service.state_dir, NAME)
    text = (await world.service.request("GET", f"{world.service.url}/openapi.json")).text
    file = world.service.state_dir.parent / "openapi.json"
    words = (str(file), "--url", world.service.url, "--header", f"Authorization: Bearer {token}")
    file.write_text(_without(text, "400"))
    control, _ = await _run(file.parent, programs / NAME, *_command(words, 10, seed))
    fault = "" if "Undocumented status code" in control else f"the control is green:{control}"
    file.write_text(text)
    validator = programs / "openapi-spec-validator"
    fault = fault or (await _run(file.parent, validator, str(file)))[0]
    of_control, answers = await _answers(world), Counter[int]()
    while not fault and (missing := requests - answers.total()) > 0:
        examples = min(EXAMPLES_MAX, 10 + missing // 12)
        fault, _ = await _run(file.parent, programs / NAME, *_command(words, examples, seed))
        before, answers = answers, await _answers(world) - of_control
        if answers.total() == before.total():
            fault = fault or "it has sent nothing"
        seed += 1
    await world.service.wait_quiet()
    if imbalance := await world.service.imbalance():
        fault = fault or f"the balance is {imbalance}"
    return Found(answers, fault)


def _without(text: str, status: str) -> str:
    """Return a document in which no operation has answers with this status."""
    document = json.loads(text)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop(status, None)
    return json.dumps(document)


def _command(words: Sequence[str], examples: int, seed: int) -> list[str]:
    return [
        *("run", *words, "--no-color", "--phases", "coverage,fuzzing"),
        *("--max-examples", str(examples), "--seed", str(seed), "--checks", ",".join(_CHECKS)),
        *("--continue-on-failure", "--generation-database", "none", "--warnings", "off"),
        *("--generation-with-security-parameters", "false"),
    ]


async def _answers(world: World) -> Counter[int]:
    """Return how many requests the service has answered, by status."""
    found = Counter[int]()
    for name, value in (await world.service.metrics()).items():
        if named := _REQUESTS.match(name):
            found[int(named[1])] += int(value)
    return found


async def _run(folder: Path, program: Path, *words: str) -> tuple[str, str]:
    """Run a program in a folder; return what it printed if it failed, and if it did not."""
    hooks = {"SCHEMATHESIS_HOOKS": "tests.clients.openapi_hooks", "PYTHONPATH": str(REPOSITORY)}
    process = await asyncio.create_subprocess_exec(
        program,
        *words,
        cwd=folder,  # it leaves a cache there
        env=environment(hooks),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await output_of(process, ROUND_S_MAX)
    text = output.decode()
    return (text, "") if process.returncode else ("", text)
