"""`ingest forward`: posts the readings of the stream to a webhook, until a signal ends it."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from ingest.cli.arguments import forward_name
from ingest.cli.parser import Parser, SettingsFlags
from ingest.cli.terminal import say
from ingest.config.forward_options import ForwardOptions, forward_options
from ingest.config.loading import Loaded
from ingest.config.sources import read_secret
from ingest.config.text import help_text, metavar
from ingest.config.values import flag_name, full_path

TAKES = "--name NAME --to URL [options]"
EXAMPLES = (
    "ingest forward --name billing --to https://billing.example/readings --secret-file secret",
    "ingest forward --name plant --to http://127.0.0.1:9000/ --device 'plant-*' --metric temp",
)
EPILOG = """\
Name it in the setting `forwards`, and run `ingest stream apply`: that makes its consumer.
exit codes: 0 stopped in order, 1 stopped by a fault of its own, 2 it could not start"""

_OPTION = "option."


def add_arguments(parser: Parser, settings: SettingsFlags) -> None:
    """Add the flags of a forwarder, and those of the settings."""
    parser.add_argument(
        "--name",
        required=True,
        type=forward_name,
        help="its name: the stream keeps its place by it",
    )
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--to", metavar="URL", help="where it posts to")
    to.add_argument(
        "--to-file", metavar="FILE", help="the same from a file: other users can read --to"
    )
    for flag, what in (("--device", "devices"), ("--metric", "metrics")):
        parser.add_argument(
            flag,
            action="append",
            default=[],
            metavar="GLOB",
            help=f"only {what} like this, as 'plant-*'; may be repeated",
        )
    parser.add_argument(
        "--secret-file", metavar="FILE", help="a secret that signs each post; read again if changed"
    )
    parser.add_argument(
        "--ca-file", metavar="FILE", default="", help="certificates to check the target with"
    )
    parser.add_argument(
        "--plain-http", action="store_true", help="allow http:// to another machine"
    )
    for each in fields(ForwardOptions):
        parser.add_argument(
            flag_name(each.name),
            dest=_OPTION + each.name,
            default=argparse.SUPPRESS,
            metavar=metavar(each),
            help=help_text(each),
        )
    settings.add_to(parser)


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Forward; return the exit code."""
    import asyncio  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    from ingest.app.forwarding import ADMIN_LISTEN, ForwardWanted, forward  # noqa: PLC0415
    from ingest.http_client.target import target_of  # noqa: PLC0415

    wanted = ForwardWanted(
        name=args.name,
        target=target_of(
            args.to if args.to_file is None else read_secret(full_path(args.to_file)),
            plain_http=args.plain_http,
        ),
        devices=tuple(args.device),
        metrics=tuple(args.metric),
        secret_file=_file(args.secret_file),
        ca_file=args.ca_file,
        options=forward_options(
            {
                name.removeprefix(_OPTION): value
                for name, value in vars(args).items()
                if name.startswith(_OPTION)
            }
        ),
    )
    is_default = loaded.origins["admin_listen"] == "default"
    admin_listen = ADMIN_LISTEN if is_default else loaded.settings.admin_listen
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(forward(loaded.settings, wanted, admin_listen=admin_listen, announce=say))


def _file(named: str | None) -> Path | None:
    return None if named is None else full_path(named)
