"""iot-ingest: sensor readings from HTTP into PostgreSQL, in batches, losing none.

The path of a reading (`-->` hands over; each name is a folder of this package):

    device                                                              PostgreSQL
      | POST /v1/readings, /write, /v1/in/NAME                               ^
      v                                                                      | commit
    http/ ---> receiver/ ---> buffers/ ---------> writer/ ---------> sinks/postgres/
               | ^  | |       memory, or           | ^ |                 |
      answer <-' |  | |       with a journal       | | '- database_state | verdict
                 |  | '-> formats/ ^               | '-------------------'
                 |  |     a block  |               |
                 |  | invalid      | replay        | refused by the database,
                 |  | items        |               | retries exhausted, drained
                 |  '-------> dead_letters/ <------'
                 |                                 |
                 '-------- ack: what became of it -'

The folders are a main house and three annexes. `ingest serve` needs no annex, and no annex knows
another. app/annexes.py finds them, and says what to install where one is missing.

With roles/ the two halves are processes of their own (`ingest gateway`, `ingest writer`; `ingest
up` runs all). Then the buffer has its inlet in the one and its outlet in the other:

    receiver/ ---> roles/inlet ---> the stream of NATS ---> roles/outlet ---> writer/
                                    '---> roles/forward/ ---> a webhook

Imports go down only. Folders of one layer do not import each other; DESIGN.md lists the layers.
The main files of each folder:

    ANNEXES
    years/          partition_life and retention (old partitions leave the table), late_partitions;
                    archive/ (Parquet files), rollups/ (of hours and days)
    roles/          gateway, writer; inlet and outlet (the stream as a buffer), letters; nats/ (the
                    broker), supervisor/ (`ingest up`), forward/ (to a webhook), commands/
    mqtt/           connection, session, gathering, bridge: from an MQTT broker to the service

    MAIN HOUSE
    cli/            commands finds a command; serve, and one file or folder for each other one
    web/            handlers: the pages of the data port in an app of aiohttp, of somebody else
    app/            makes and connects the parts: pipeline/ (core = receiving + writing; it is
                    also for programs of others), service (the core with ports), process (start,
                    stop, last line); health, space, housekeeping, metrics_and_causes, annexes
    admin/          the admin port: port, exposition (/metrics), guard, dashboard/ (and its page/)
    receiver/       endpoint (the data port), posts (the way from a request to its answer), pages/
                    (what json, lines and mapped say differently), keeping and small_posts (keep
                    what was decoded); access, senders (who may post, and how much)
    dead_letters/   queue, store, folder/ (where they are kept), format; auto_replay, manual_replay
    access/         tokens: their file, its lines, who has which
    http/           listener, connections (all of a port), connection (one), clients, framer, tls;
                    rounds (of the event loop), bodies, request_and_answer, routes
    formats/        media_types (their list), post (what all share); json/, lines/ and mapped/: each
                    body, then the fast or the careful way; block_builder (rows); messagepack,
                    senml; objects (of Python)
    buffers/        memory, waiting (for room), frames; journal/ (the same with files on the disk)
    writer/         writer, batch, database_state (may batches be written?), refused_rows
    sinks/          postgres/: sink, connection, statements, sqlstate, schema, lookup;
                    housekeeping/ (partitions of today and of coming days); memory_table (for tests)
    embedded/       a PostgreSQL of our own; server_process starts and watches any server program
    http_client/    posts to the servers of others: client, delivery (until it is taken)
    config/         settings (each declared once), and where their values come from
    system/         clock, logs, files, state_folder, service_manager: the machine
    model/          reading, block, ledger, causes, errors, codes, ports (contracts): the types that
                    all share

tests/house/layout.py has the rules, tests/house/test_layout.py checks them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ingest.app.pipeline.core import Drained
    from ingest.app.pipeline.pipeline import Kept, Pipeline
    from ingest.dead_letters.store import Selection
    from ingest.model.errors import (
        Broken,
        BufferFull,
        ConfigError,
        IngestError,
        Refused,
        StartError,
        Stopping,
    )

__version__ = "1.0.0"
__all__ = [
    "Broken",
    "BufferFull",
    "ConfigError",
    "Drained",
    "IngestError",
    "Kept",
    "Pipeline",
    "Refused",
    "Selection",
    "StartError",
    "Stopping",
]


def __getattr__(name: str) -> object:
    """Return a name of the library; its first use loads it, so that commands start quickly."""
    if name not in __all__:
        raise AttributeError(f"module 'ingest' has no attribute {name!r}")
    from ingest.app.pipeline import pipeline  # noqa: PLC0415

    return getattr(pipeline, name)
