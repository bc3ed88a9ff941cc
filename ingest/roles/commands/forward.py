"""`ingest forward`: posts the readings of the stream to a webhook, until a signal ends it."""

from __future__ import annotations

import argparse

from ingest.cli.parser import (
    Command,
    OneOf,
    admin_listen_of,
    flag,
    forward_name,
    option_flags,
    options_of,
    say,
)
from ingest.cli.serve import on_uvloop
from ingest.config.loading import Loaded
from ingest.config.origins import read_secret
from ingest.config.values import full_path
from ingest.roles.forward.options import ForwardOptions


def _run(args: argparse.Namespace, loaded: Loaded) -> int:
    from ingest.http_client.client import target_of  # noqa: PLC0415
    from ingest.roles.forward.service import ADMIN_LISTEN, ForwardWanted, forward  # noqa: PLC0415

    wanted = ForwardWanted(
        name=args.name,
        target=target_of(
            args.to if args.to_file is None else read_secret(full_path(args.to_file)),
            plain_http=args.plain_http,
        ),
        devices=tuple(args.device),
        metrics=tuple(args.metric),
        secret_file=None if args.secret_file is None else full_path(args.secret_file),
        ca_file=args.ca_file,
        options=options_of(ForwardOptions, args),
    )
    admin_listen = admin_listen_of(loaded, ADMIN_LISTEN)
    return on_uvloop(forward(loaded.settings, wanted, admin_listen=admin_listen, announce=say))


COMMAND = Command(
    examples=(
        "ingest forward --name billing --to https://billing.example/readings --secret-file secret",
        "ingest forward --name plant --to http://127.0.0.1:9000/ --device 'plant-*' --metric temp",
    ),
    run=_run,
    usage="--name NAME --to URL [options]",
    flags=(
        flag(
            "--name",
            required=True,
            type=forward_name,
            help="its name: the stream keeps its place by it",
        ),
        OneOf(
            (
                flag("--to", metavar="URL", help="where it posts to"),
                flag(
                    "--to-file",
                    metavar="FILE",
                    help="the same from a file: other users can read --to",
                ),
            ),
            is_required=True,
        ),
        *(
            flag(
                name,
                action="append",
                default=[],
                metavar="GLOB",
                help=f"only {what} like this, as 'plant-*'; may be repeated",
            )
            for name, what in (("--device", "devices"), ("--metric", "metrics"))
        ),
        flag(
            "--secret-file",
            metavar="FILE",
            help="a secret that signs each post; read again if changed",
        ),
        flag("--ca-file", metavar="FILE", default="", help="certificates to check the target with"),
        flag("--plain-http", action="store_true", help="allow http:// to another machine"),
        *option_flags(ForwardOptions),
    ),
    epilog="""\
Name it in the setting `forwards`, and run `ingest stream apply`: that makes its consumer.
exit codes: 0 stopped in order, 1 stopped by a fault of its own, 2 it could not start""",
)
