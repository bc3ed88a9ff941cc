"""Named parts of the fault table: `./run faults --only ci`.

`.ci/run` runs the selection `ci` before each merge, on one seed and in at most 12 minutes: of each
family the faults that test most of the promise, and all controls and mutants, without which a green
run proves nothing. The whole table, on two seeds, is run before a release. Does not: know what a
fault does.
"""

from __future__ import annotations

CI: dict[str, str] = {
    # The end of the service.
    "F2": "a killed service loses nothing that it acknowledged: the promise itself, 100 times",
    "F4": "an ordinary stop writes all readings that are held; each accepted one was answered",
    # The end of the database.
    "F7": "without a database memory and journal fill up to their bounds, then posts get a 503",
    "F8": "a write that commits late, after the service gave up, is stored once",
    "F10": "a killed PostgreSQL loses nothing, and nothing is dead-lettered for it",
    # The connection between both.
    "F11": "a write whose COMMIT had no reply is tried again and stored once",
    "F50": "connections that fail in random orders on both sides: cases that nobody listed",
    # What an operator does to the database.
    "F21": "a changed schema pauses writing; no reading is dead-lettered, no value goes wrong",
    "F57": "a reading that only its own row's fault keeps out is dead-lettered alone",
    "F58": "a changed precision is seen by the write itself: no time is rounded",
    "F60": "the same for a collation, on Debian's PostgreSQL with ICU",
    # What surrounds the database.
    "F51": "backends that wait for a standby do not use up the connections of the database",
    "F53": "a service that starts while its database is away takes posts",
    "F55": "a pooler in front of the database: it may be killed, its mode is recognized",
    # The disk.
    "F25": "a full disk gives a 503, and leaves no half entry in journal or dead letters",
    "F26": "a write or fsync that fails once, often or for ever is not answered as kept",
    "F27": "what was acknowledged was fsynced: a power cut of the service's files loses nothing",
    "F28": "damaged files are skipped and counted; the service starts",
    # The whole machine.
    "P1": "the same as F27 for service and PostgreSQL together, on a file system that loses bytes",
    # Missing resources.
    "F29": "without free file descriptors the service waits, logs it, and needs little processor",
    "F30": "a service that the kernel kills for its use of memory loses nothing",
    # The broker: the rest is in the selection `broker`.
    "B16": "a message that nats-server passes over in silence is read from another server",
    # The clients.
    "F35": "a client that lost the answer sends again, and the reading is stored once",
    "F37": "in a post that is partly bad exactly the bad items are named and refused",
    # A check that cannot fail proves nothing: these must lose readings.
    "C1": "the check sees a loss: memory alone, no more than it may hold",
    "C2": "the check sees commits that PostgreSQL lost, so F10 can fail",
    "C3": "the check sees a journal that was never fsynced, so F27 can fail",
    "C4": "the same as C3 for the file system of the whole machine, so P1 can fail",
    "M1": "the check sees an answer that came before the commit",
    "M2": "the check sees one lost reading in 10,000",
    "M3": "the check sees dead letters that were never fsynced",
    "M4": "the check sees readings that are stored twice, so F11 can fail",
    "M5": "the check sees a failed write that was taken for a success",
    "M6": "the check sees a message that no writer was given, so B16 can fail",
}
BROKER: dict[str, str] = {
    # The power.
    "B1": "what a nats-server acknowledged was fsynced",
    "B2": "the same for three at once: then other copies are no help",
    # The end of a nats-server.
    "B3": "without the only server posts wait or are refused, and none is lost",
    "B4": "while three choose another leader posts wait, and none is refused",
    "B5": "a leader that stops, or stands still, loses nothing",
    "B6": "nor does a follower",
    "B7": "nor does the server that a gateway is connected to: it publishes again to another one",
    "B8": "nor do all three at once",
    "B12": "servers can be upgraded one by one, under load",
    # The end of a gateway or a writer.
    "B9": "a killed writer's messages come again to another one",
    "B10": "a message that was stored and not answered comes twice, and is stored once",
    "B11": "the table's key holds when the stream no longer knows the id of a message",
    # The stream.
    "B13": "a full stream refuses, and removes nothing",
    "B14": "a full disk of the broker is a state, and loses nothing",
    "B15": "without its consumer the stream keeps all messages",
    "B16": "a damaged copy is read again from another server",
    "B17": "a forwarder whose target is away delays nobody",
    # The only copy is gone: nobody can keep these readings, so the loss must be told.
    "L1": "a deleted stream is counted, named and alarmed",
    "L2": "so is a purge by hand",
    "L3": "so is a damaged message, which nats-server itself passes over in silence",
    # A check that cannot fail proves nothing: these must lose readings.
    "C5": "the check sees messages that were never fsynced, so B1 can fail",
    "C6": "the same for three servers, so B2 can fail",
    "C7": "the check sees messages that a stream dropped with its consumer, so B15 can fail",
    "M6": "the check sees a message that no writer was given, so B16 can fail",
}
YEARS: dict[str, str] = {
    # Kills, 50 in all: what was begun is ended by the next run.
    "Y1": "a killed service loses nothing that is on its way into the archive",
    "Y2": "nor does a killed PostgreSQL, in the middle of a detach, a record or a drop",
    "Y3": "nor does a killed run, at drawn moments and before drawn calls",
    # The disk.
    "Y4": "an archive without room drops nothing, says so, and goes on when there is room",
    # Several at once.
    "Y5": "two instances and a run beside them archive each partition once",
    "Y6": "readings for a day that is just being archived wait for nobody, and are there once",
    # What an operator does.
    "Y7": "a partition that was detached by hand is nobody else's; attached again, it is merged",
    "Y8": "a detach by hand that was cut off does not keep readings out for ever",
    "Y9": "a role without rights is named with what it lacks, and readings wait for it",
    # The clocks.
    "Y10": "a clock that jumps makes nothing leave that nobody has confirmed",
    # A check that cannot fail proves nothing: these must lose readings, or have some twice.
    "M7": "the check sees a partition that was dropped and not archived, so Y1 to Y3 can fail",
    "M8": "the check sees a merge that forgot the old file, so Y6 can fail",
    "M9": "the check sees readings that are in the table and in a file, so Y5 can fail",
}
SELECTIONS = {"ci": CI, "broker": BROKER, "years": YEARS}


def names_of(only: str) -> list[str]:
    """Return the faults of `--only` in its order, each once; a selection stands for its faults."""
    words = only.split(",")
    return list(dict.fromkeys(name for word in words for name in SELECTIONS.get(word, (word,))))


def told() -> str:
    """Return all selections for `--help`, with the reason for each fault."""
    return "\n\n".join(
        f"--only {word} is:\n" + "\n".join(f"  {name:<4} {why}" for name, why in chosen.items())
        for word, chosen in SELECTIONS.items()
    )
