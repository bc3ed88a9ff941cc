"""iot-ingest: sensor readings from HTTP into PostgreSQL, in batches, losing none.

The path of a reading (`-->` hands over; names are files of this package):

    device                                                               PostgreSQL
      | POST /v1/readings                                                     ^
      v                                                                       | commit
    connections --> endpoint --> decode --> buffer_* -------> batch --> sink_postgres
                    | ^   |  inflate  block      ^    |          \\      /    |
        202/200 <---' |   |                      |    |           writer     | verdict
        4xx/503 <-----'   |                      |    |             |        v
                          | invalid items        |    |             | gate (wait, hold), retry,
                          v                      |    |             | breaker (isolate)
                     dead_letter <---------------|----|-------------'
                          |                      |    | the database refuses, retries_exhausted,
                          `------> replay -------'    | drained
                                                      v
                                              ack: the post's answer

    the door      listener, connection (one), request, intake (body, inflate, turns), query,
                  decode, decode_fast, decode_item, timestamp; replies, problems (answers),
                  outcomes (waits for one); site (what both ports share)
    the buffer    its parts: waiting (posts that wait for room), block_queue, bounded_memory (and
                  the reservation of a post); buffer_memory; buffer_journal (memory, and a journal
                  on the disk), buffer_journal_loader (reads back from there); journal (groups, one
                  fsync each), journal_entries, journal_thread (what blocks), journal_book
                  (segments, ranges), journal_store (writes), journal_reader, journal_format
                  (every byte)
    dead letters  set_aside (what becomes one), dead_letter (append), dead_letter_* (files,
                  format, reading them, cursor, which are live); replay (by itself),
                  replay_by_hand (for `ingest dlq replay`)
    looking in    health (/livez, /readyz), admin (/metrics), metrics (every metric, and the law);
                  dashboard (its addresses, its tick), dashboard_* (history, feed, devices, tail,
                  letters, guard, query, page), lookup_postgres; page/ is what the browser gets
    running it    app wires and starts the parts (app_buffer: the buffer; app_dashboard: the
                  dashboard; app_hello: what it says first; app_signals: what ends it), sd_notify
                  tells systemd; cli and cli_* are the words of `ingest`
    the database  sink_connection, schema (the table, and the check of it), schema_apply (makes it),
                  durability (whether a commit is kept);
                  our own server: postgres_embedded, postgres_* (its programs, its data)
    ground        reading, block, ports, config, config_* (values, sources, texts), verdict,
                  codes, errors, clock, counted, statefolder, logs, files (that do not
                  lie), filesystem (of what kind)

Imports go down only (tests/test_house_rules.py holds the layers).
"""

__version__ = "0.1.0"
