"""`ingest mqtt`: posts the messages of an MQTT broker to the service, until a signal ends it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib.util import find_spec

from ingest.app.annexes import needs
from ingest.cli.parser import (
    Command,
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
from ingest.model.errors import StartError
from ingest.mqtt.options import MqttOptions, MqttTls, MqttWanted, check_filter, mqtt_address

PASSWORD_VARIABLE, TOKEN_VARIABLE = "INGEST_MQTT_PASSWORD", "INGEST_MQTT_TOKEN"
ACKS = ("buffered", "durable", "committed")
SERVICE_URL = "http://127.0.0.1:8080"


def _run(args: argparse.Namespace, loaded: Loaded) -> int:
    if find_spec("paho") is None:
        raise StartError(needs("ingest mqtt", "mqtt"))
    from ingest.app.client_process import run_client  # noqa: PLC0415
    from ingest.mqtt.service import ADMIN_LISTEN, ROLE, MqttService  # noqa: PLC0415

    for topic in args.topic:
        check_filter(topic)
    wanted = _wanted(args)
    return on_uvloop(
        run_client(
            loaded.settings,
            ROLE,
            wanted.name,
            lambda folder, process: MqttService(loaded.settings, wanted, folder, process),
            admin_listen=admin_listen_of(loaded, ADMIN_LISTEN),
            does=f"takes messages of {wanted.address.shown} for {wanted.target.shown}",
            announce=say,
        )
    )


def _wanted(args: argparse.Namespace) -> MqttWanted:
    from ingest.http_client.client import target_of  # noqa: PLC0415
    from ingest.mqtt.gathering import form_of  # noqa: PLC0415

    form, source = args.format or "json", args.source or ""
    if args.source is not None:
        _check_source(args)
    path = form_of(form, source).path + (f"?ack={args.ack}" if args.ack else "")
    return MqttWanted(
        name=args.name,
        address=mqtt_address(args.mqtt_url),
        client_id=args.client_id or f"iot-ingest-{args.name}",
        topics=tuple(dict.fromkeys(args.topic)),
        target=target_of(
            args.url.rstrip("/") + path,
            plain_http=args.plain_http,
            name="--url",
            instead="send a token instead (--token-file)",
        ),
        form=form,
        source=source,
        version=5 if args.mqtt_version == "5" else 3,
        tls=MqttTls(args.mqtt_ca, args.mqtt_cert, args.mqtt_key),
        password=_secret(args.mqtt_password_file, PASSWORD_VARIABLE),
        token=_secret(args.token_file, TOKEN_VARIABLE),
        service_ca_file=args.ca_file,
        options=options_of(MqttOptions, args),
    )


def _check_source(args: argparse.Namespace) -> None:
    from ingest.formats.mapped.source import NAME  # noqa: PLC0415

    for each in ("format", "ack"):
        if getattr(args, each):
            raise StartError(f"--{each} is not for a source; leave it out, or --source")
    if not NAME.fullmatch(args.source):
        raise StartError("--source is the name of a source, as in `ingest sources list`")


def _secret(named: str | None, variable: str) -> Callable[[], str]:
    """Return what reads a secret from a file, or from a variable of the environment."""
    if named is None:
        return lambda: os.environ.get(variable, "")
    file = full_path(named)
    return lambda: read_secret(file)


COMMAND = Command(
    examples=(
        "ingest mqtt --mqtt-url mqtt://127.0.0.1 --topic 'sensors/#'",
        "ingest mqtt --mqtt-url mqtts://reader@broker.example --mqtt-password-file password "
        "--topic '$share/ingest/sensors/+/up' --format lines",
        "ingest mqtt --mqtt-url mqtt://127.0.0.1 --topic 'sensors/#' --source house",
    ),
    run=_run,
    usage="--mqtt-url URL --topic TOPIC [options]",
    flags=(
        flag("--mqtt-url", metavar="URL", required=True, help="mqtt[s]://[USER@]HOST[:PORT]"),
        flag(
            "--topic",
            action="append",
            required=True,
            metavar="FILTER",
            help="what to subscribe to, as 'sensors/#' or '$share/GROUP/sensors/#'; may be "
            "repeated",
        ),
        flag(
            "--format",
            choices=("json", "lines"),
            help="json: items of POST /v1/readings; lines: line protocol [json]",
        ),
        flag(
            "--source",
            metavar="NAME",
            help="messages are any JSON: a source of the service says what they become",
        ),
        flag(
            "--name",
            type=forward_name,
            default="default",
            help="name of this process: names its folder of dead letters and its client id "
            "[default]",
        ),
        flag(
            "--client-id",
            default="",
            metavar="ID",
            help="the broker keeps messages for this name [iot-ingest-NAME]",
        ),
        flag(
            "--mqtt-password-file", metavar="FILE", help="the user's password; read at each connect"
        ),
        flag("--mqtt-ca", metavar="FILE", default="", help="certificates to check the broker with"),
        flag(
            "--mqtt-cert",
            metavar="FILE",
            default="",
            help="a certificate of our own, for the broker",
        ),
        flag("--mqtt-key", metavar="FILE", default="", help="its key, if that is another file"),
        flag(
            "--mqtt-version",
            choices=("5", "3.1.1"),
            default="5",
            help="with 3.1.1 the broker decides how much it sends, and how long it keeps "
            "messages [5]",
        ),
        flag("--url", default=SERVICE_URL, help=f"the service [{SERVICE_URL}]"),
        flag("--token-file", metavar="FILE", help="the token for the service; read at each post"),
        flag("--ack", choices=ACKS, help="when the service answers; default: its ack_default"),
        flag(
            "--ca-file", metavar="FILE", default="", help="certificates to check the service with"
        ),
        flag("--plain-http", action="store_true", help="allow http:// to another machine"),
        *option_flags(MqttOptions),
    ),
    epilog="""\
secrets: INGEST_MQTT_PASSWORD or --mqtt-password-file; INGEST_MQTT_TOKEN or --token-file
exit codes: 0 stopped in order, 1 stopped by a fault of its own, 2 it could not start""",
)
