"""iot-ingest: sensor readings from HTTP into PostgreSQL, in batches, losing none.

The path of a reading (`-->` hands over; each name is a folder of this package):

    device                                                              PostgreSQL
      | POST /v1/readings, /write                                            ^
      v                                                                      | commit
    http/ ---> receiver/ ---> buffers/ ---------> writer/ ---------> sinks/postgres/
               | ^  | |        ^  memory           | ^ |                 |
      answer <-' |  | '-> formats/ or journal/     | | '- database_state | verdict
                 |  |     a block                  | |    breaker, retry |
                 |  | invalid  ^                   | '-------------------'
                 |  | items    |                   |
                 |  v          | replay            | refused by the database,
                 | dead_letters/ <-----------------' retries exhausted, drained
                 |                                 |
                 '-------- ack: what became of it -'

With a broker the two halves are processes of their own (`ingest gateway`, `ingest writer`; `ingest
up` runs all). Then the buffer has its inlet in the one and its outlet in the other:

    receiver/ ---> buffers/stream/ ---> the stream of NATS ---> buffers/stream/ ---> writer/
                   inlet, groups        '--> forward/ --> a webhook      outlet

The folders. Imports go down only, and folders of one row do not know each other:

    roles/, years/  annexes: what the main house works without (app/annexes.py)
    cli/            the commands of `ingest`: main (lists them), services (those that run on), and
                    one file for each other command
    app/            makes and connects the parts: process (start, stop, last line), service,
                    receiving, writing (starts and stops the writers), buffer, rules, health,
                    metrics and causes (lists of all parts), admin; gateway, stream_writer and
                    role; up (leads processes) with children and child
    admin/          the admin port: exposition (/metrics), guard, dashboard/ (and its page/)
    receiver/       endpoint (the data port), posts (the way from a request to its answer), pages/
                    (json, lines, line_stubs, mapped: what is said differently), keeping and
                    small_posts (keep what was decoded), ack_waits; access, senders
                    (who may post, and how much)
    forward/        bodies, sender, forwarder: from the stream to a webhook
    archive/        archiver, folder, files, runs, sorting, copied_rows, postgres_hash: old
                    partitions as Parquet files
    mqtt/           connection, session, gathering, bridge: from an MQTT broker to the service
    dead_letters/   queue, room, format, identity; auto_replay, manual_replay; store (what
                    commands and the page use); folder/ and stream/ (where the letters are kept)
    access/         tokens: their file, their entries, who has which
    http/           listener, connections (limits of a port), connection (one) with
                    framer, valve and heads; tls, certificate; request, bodies,
                    response, routes, proxies (clients behind them)
    formats/        media_type (their list), json_post (json_slices, json_whole, json_item),
                    ndjson, packed_post (packed_item), senml (senml_state, senml_record),
                    block_builder (blocks from lines and documents),
                    line_protocol (line_escapes, line_whole, line_item, line_series), map_post
                    (other JSON by the table of a source: map_source, map_paths, map_row,
                    map_documents)
    buffers/        memory, shared_block, frames; journal/ (log, entries, loader, thread, folder,
                    index, reader, format); stream/ (inlet, outlet, messages)
    writer/         writer, batch, database_state, breaker, set_aside
    sinks/          postgres/: sink, connection, sqlstate, schema, durability, lookup
    embedded/       our own PostgreSQL (server, data, programs) and nats-server (broker)
    broker/         NATS JetStream: session and connection, publishing, pulling, streams, roles;
                    audit and removals (what the stream has lost)
    http_client/    posts to the servers of others
    config/         settings, and where their values come from
    system/         clock, logs, files, state_folder, signals, backoff
    model/          reading, rows, block, ack, letter, verdict, errors, ledger, ports (contracts)

tests/house/layout.py holds the rule.
"""

__version__ = "1.0.0"
