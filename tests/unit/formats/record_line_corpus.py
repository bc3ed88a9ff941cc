r"""Records what others read in lines whose names have backslashes, commas, `=`, spaces and quotes.

`python -m tests.unit.formats.record_line_corpus` writes line_corpus.jsonl. It needs an environment
with influxdb-client and line-protocol-parser, and at INFLUXD (host:port) the server of Debian's
package influxdb (1.6.7). Half of the lines are written by influxdb-client, so their names are
known. Half are made from the grammar that InfluxData has published (influxdata/line-protocol),
right and wrong ones. The server decides what they mean, but where it differs from that grammar: it
also removes the backslash of `\"` in measurement and field (so two fields may be one), and of `\=`
in a measurement; it does not find each measurement with a backslash again; and it takes a tag's
value that begins with `=`. There the parser decides. Both refuse a field with two backslashes
before a mark, which the grammar allows: of these only influxdb-client's are in the corpus.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import sys
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

CORPUS = Path(__file__).with_name("line_corpus.jsonl")
SEED, EACH = 27, 1_000
CHARACTERS = ("a", "b", "é", "\\", "\\", ",", "=", " ", '"')
# Of a line; then a mark as it is, which ends the name too early.
PIECES = ("a", "b", "é", "\\", "\\x", '"', '\\"', "\\,", "\\=", "\\ ", "\\\\,", "\\\\ ", "\\\\\\")
VALUES = (*("1", "-2.5", "3i", "t", "FALSE") * 4, '"x, \\"y"', '"a\\\\"', '"b=1 c"', "x", "")

Meant = list[Any] | None  # measurement, tags and fields, or that the line is wrong


def a_name(some: random.Random) -> str:
    """Return a name that can be written: in InfluxDB's lines none may end with a backslash."""
    name = "".join(some.choices(CHARACTERS, k=some.randint(1, 6)))
    return name + "z" if name.endswith("\\") or name.startswith("#") else name


def a_line(some: random.Random) -> str:
    """Return a line that may be wrong."""

    def piece() -> str:
        pieces = some.choices(PIECES, k=some.randint(1, 4))
        return "".join(pieces) + some.choice(("",) * 20 + (",", "=", " "))

    tags = "".join(f",{piece()}={piece()}" for _ in range(some.randint(0, 2)))
    names = [piece() + "=" for _ in range(some.randint(1, 2))]
    fields = ",".join(re.sub(r"\\+(?=\\[,= ])", "", each) + some.choice(VALUES) for each in names)
    return f"{piece()}{tags} {fields}{some.choice(('', ' 1795600000000000000'))}"


def by_client(some: random.Random) -> tuple[str, Meant, str]:
    """Return a line of influxdb-client, and its names."""
    point = {
        "measurement": a_name(some),
        "tags": {a_name(some): a_name(some) for _ in range(some.randint(0, 2))},
        "fields": {a_name(some): float(value) for value in range(some.randint(1, 2))},
    }
    line = importlib.import_module("influxdb_client").Point.from_dict(point).to_line_protocol()
    return line, [*point.values()], "client"


def by_server(line: str) -> Meant:
    """Return what InfluxDB stores of a line; None if it refuses it."""

    def ask(path: str, query: dict[str, str], body: str = "") -> Any:
        connection = HTTPConnection(os.environ["INFLUXD"])
        connection.request("POST", f"{path}?{urlencode(query)}", body.encode())
        return json.loads(connection.getresponse().read() or "{}")

    ask("/query", {"q": "DROP DATABASE corpus; CREATE DATABASE corpus"})
    error = ask("/write", {"db": "corpus"}, line).get("error", "")
    if error and "type conflict" not in error:
        return None
    found = ask("/query", {"q": "SELECT * FROM /.*/ GROUP BY *", "db": "corpus"})
    (series,) = found["results"][0].get("series", [{"name": "", "columns": [], "values": [[]]}])
    fields = dict(zip(series["columns"], series["values"][0], strict=True))
    return [series["name"], series.get("tags", {}), {k: fields[k] for k in fields if k != "time"}]


def by_parser(line: str) -> Meant:
    """Return what line-protocol-parser reads in a line."""
    parser = importlib.import_module("line_protocol_parser")
    try:
        read = parser.parse_line(line)
    except parser.LineFormatError:
        return None
    return [read["measurement"], read["tags"], read["fields"]]


def decided(line: str) -> tuple[str, Meant, str]:
    """Return a line, what it means, and who says so."""
    server, parser = by_server(line), by_parser(line)
    if server == parser:
        return line, server, "both"
    is_otherwise = server and (
        not server[0]
        or re.search(r"(?<!\\)==", line)
        or (parser and _without(*server) == _without(*parser))
    )
    return (line, parser, "parser") if is_otherwise else (line, server, "server")


def _without(measurement: str, tags: dict[str, str], fields: dict[str, Any]) -> Meant:
    """Return names without the backslashes that the server removes."""
    plain = {re.sub(r'\\+"', '"', name): value for name, value in fields.items()}
    return [re.sub(r'\\+(["=])', r"\1", measurement), tags, plain]


def main() -> None:
    """Record the corpus."""
    some = random.Random(SEED)
    entries = [by_client(some) for _ in range(EACH)]
    entries += [decided(a_line(some)) for _ in range(EACH)]
    CORPUS.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in entries))
    sys.stdout.write(f"{Counter((who, meant is None) for _, meant, who in entries)}\n")


if __name__ == "__main__":
    main()
