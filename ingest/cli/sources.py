"""`ingest sources`: lists the sources, and shows what a body becomes, without a service."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ingest.app.post_rules import make_rules, make_sources
from ingest.cli.parser import JSON, Command, Ending, flag
from ingest.config.loading import Loaded
from ingest.config.settings import Settings
from ingest.config.values import nearest
from ingest.formats.mapped.body import MapPost, decode
from ingest.formats.mapped.documents import form_in
from ingest.formats.mapped.source import IN, PRESETS, Source, compile_source
from ingest.formats.post import Post
from ingest.model.errors import IngestError, Refused
from ingest.model.moments import decode_readings
from ingest.system.clock import monotonic_s, rfc3339_or_us, unix_us

EXIT_FAULTS = 1
BODY_BYTES_MAX = 64 * 1024 * 1024


def _list(_args: argparse.Namespace, loaded: Loaded) -> Ending:
    sources = [_described(each) for each in make_sources(loaded.settings).values()]
    lines = [
        f"{each['name']:<20} {' '.join(each['methods']):<10} {' '.join(each['paths'])}"
        + (f"  (preset {each['preset']})" if each["preset"] else "")
        for each in sources
    ]
    file = loaded.settings.sources_file
    none = f"{file} has no sources" if file else "there are no sources: sources_file is empty"
    text = "\n".join([*(lines or [none]), "", f"presets: {', '.join(PRESETS)}"])
    return Ending({"sources": sources, "presets": [*PRESETS]}, text)


def _described(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "preset": source.preset,
        "methods": ["POST", "GET"] if source.reads_query else ["POST"],
        "paths": [IN + source.name, *source.paths],
        "ignored_paths": [*source.ignored_paths],
    }


def _try(args: argparse.Namespace, loaded: Loaded) -> Ending:
    """Return what the body becomes; the exit code is 1 if something of it would not be stored."""
    settings = loaded.settings
    source = _chosen(args.name, settings)
    headers = dict(_pair(each, ":") for each in args.header)
    roots = {
        "query": form_in(args.query),
        "header": {name.lower(): text.strip() for name, text in headers.items()},
        "path": dict(_pair(each, "=") for each in args.in_path),
        "token": {"device": args.token_device} if args.token_device else {},
        "topic": args.topic,
    }
    body = args.query.encode() if args.get else sys.stdin.buffer.read(BODY_BYTES_MAX)
    try:
        document = _read(body, source, roots, settings)
    except Refused as refused:
        raise IngestError(f"the post would be refused ({refused.code}): {refused.detail}") from None
    is_whole = document["readings"] and not document["faults"]
    return Ending(document, _text(document), 0 if is_whole else EXIT_FAULTS)


def _chosen(name: str, settings: Settings) -> Source:
    sources = make_sources(settings)
    if name in sources:
        return sources[name]
    if name in PRESETS:
        print(f"no source is called {name}; this is the preset as it is", file=sys.stderr)
        return compile_source({"preset": name})
    known = [*sources, *PRESETS]
    file = settings.sources_file
    seen = f"; {file} has {', '.join(sources) or 'none'}" if file else "; add --sources-file FILE"
    raise IngestError(f"there is no source {name!r}{nearest(name, known)}{seen}")


def _read(body: bytes, source: Source, roots: dict[str, Any], settings: Settings) -> dict[str, Any]:
    from ingest.app.receiving import line_rows_max  # noqa: PLC0415  it loads the whole receiver

    post = Post(None, False, unix_us(), monotonic_s(), make_rules(settings))
    rows_bytes_max = settings.buffer_bytes_max // 16
    found = decode(body, MapPost(post, source, roots, line_rows_max(settings), rows_bytes_max))
    return {
        "readings": [
            {
                "ts": rfc3339_or_us(each.ts_us),
                "device_id": each.device_id,
                "metric": each.metric,
                "value": each.value,
            }
            for block in found.blocks
            for each in decode_readings(block.tuples)
        ],
        "faults": [
            {"index": each.item, "code": each.code, "field": each.field, "message": each.message}
            for each in found.errors
        ],
        "ignored": found.ignored,
        "hints": found.hints,
    }


def _text(document: dict[str, Any]) -> str:
    lines = [
        f"{each['ts']}  {each['device_id']}  {each['metric']}  {each['value']!r}"
        for each in document["readings"]
    ]
    for each in document["faults"]:
        field = f" at {each['field']}" if each["field"] else ""
        lines.append(f"document {each['index']}: {each['code']}{field}: {each['message']}")
    if document["ignored"]:
        lines.append(
            f"ignored: {document['ignored']} (left out by `when`, `only` or `except`, or empty)"
        )
    lines += [f"is this meant? {each}" for each in document["hints"]]
    return "\n".join(lines)


def _pair(text: str, mark: str) -> tuple[str, str]:
    name, found, value = text.partition(mark)
    if not found:
        raise IngestError(f"{text!r} has no {mark!r}: write NAME{mark}VALUE")
    return name, value


COMMAND = Command(
    examples=(
        "ingest sources list --sources-file sources.toml",
        "ingest sources try esp --sources-file sources.toml",
    ),
    usage="COMMAND [options]",
    commands={
        "list": Command(
            "print the sources and the presets: where each is posted to",
            ("ingest sources list --sources-file sources.toml", "ingest sources list --json"),
            _list,
            flags=(JSON,),
        ),
        "try": Command(
            "print the readings that a body on stdin would become, or why it would not",
            (
                "ingest sources try esp --sources-file sources.toml",
                "ingest sources try chirpstack < uplink.json",
                "ingest sources try shelly --get --query 'device=ht1&temperature=21.5'",
                "ingest sources try house --topic sensors/greenhouse/temp",
            ),
            _try,
            "[options] NAME",
            (
                flag("name", metavar="NAME", help="a source of the file, or a preset"),
                flag("--query", metavar="TEXT", default="", help="what stands behind the `?`"),
                flag("--get", action="store_true", help="a GET: the query is the body"),
                flag(
                    "--header",
                    metavar="NAME:VALUE",
                    action="append",
                    default=[],
                    help="may be repeated",
                ),
                flag(
                    "--in-path",
                    metavar="NAME=TEXT",
                    action="append",
                    default=[],
                    help="as in device=ht1",
                ),
                flag("--topic", default="", help="the topic of an MQTT message"),
                flag(
                    "--token-device",
                    metavar="ID",
                    default="",
                    help="the device of the sender's token",
                ),
                JSON,
            ),
        ),
    },
)
