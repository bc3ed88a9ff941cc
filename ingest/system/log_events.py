"""What each event of the log means. docs/operating.md prints it, with the levels and the fields.

Levels and fields are read from the code that logs. A test compares the events with this list.
"""

from __future__ import annotations

EVENTS: dict[str, str] = {
    # Starts, stops, and what somebody did
    "stopping": "A signal came: the service finishes what it has.",
    "hastened": "A second signal came: writing ends at once, the rest is kept.",
    "posts_left_inside": "At a stop, posts were still in work when the time was over.",
    "readings_lost": "At a stop, readings could neither be stored nor kept. This is a loss.",
    "task_died": "A bug: a part of the service failed. The service stops in an orderly way.",
    "state": "/readyz has another state: the service takes posts again, or refuses them.",
    "hold_released": "Somebody used `hold release`, or the button of the page.",
    "open_to_the_network": "A port listens beyond the loopback.",
    "started_as_root": "The service runs as root. Give it a user of its own.",
    "fewer_connections": "Nearly all connections that the limit of open files allows are in use.",
    # Posts and connections
    "posts_refused": "So many posts were refused with this code since the last such line.",
    "connections_closed": "A limit closed so many connections since the last such line.",
    "accept_failed": "The system gives the service no new connection: too many open files?",
    "request_failed": "A bug: a request was answered 500.",
    "tick_failed": "A bug of the dashboard. Posts are not affected.",
    # The database
    "database_away": "The database does not answer. Readings are kept.",
    "database_back": "The database answers again, after so many seconds.",
    "on_hold": "Writes are paused until somebody fixes the cause. Readings are kept.",
    "writing_resumed": "Writes go on after a pause of so many seconds.",
    "database_never_seen": "The database is away, and was never seen from this state folder.",
    "database_not_remembered": "The disk did not keep that the database was seen.",
    "database_url_changed": "The file of database_url_file has another URL. It is used now.",
    "database_url_file_unusable": "That file cannot be read or has no URL. The old URL is used.",
    "url_not_published": "Other commands do not find the new URL of the database.",
    "writer_left_out": "The database has no connection for this writer; another one writes.",
    "write_failed": "A write failed and is tried again.",
    "table_not_made": "The role may not create the table, or the creation failed.",
    "table_replaced": "Another table has this name now. It was checked in full, and fits.",
    "database_not_durable": "The database can lose what it has committed (`database_unsafe`).",
    "database_shared": "A command runs the embedded database; the service uses it too.",
    "database_not_taken_over": "That command has ended, and the database could not be started.",
    "database_socket_removed": "Somebody removed the socket. The database is restarted.",
    "database_exited": "The embedded database has ended. It is started again.",
    "database_restarted": "The embedded database runs again.",
    "database_not_restarted": "The embedded database could not be started. It is tried again.",
    # Dead letters
    "invalid_items_refused": "The dead letters are half full: posts with an invalid item get 422.",
    "invalid_items_kept_again": "There is space for invalid items again.",
    "dead_letter_write_failed": "The disk did not take dead letters.",
    "dead_letters_unreadable": "A file of the dead letters cannot be read.",
    "dead_letters_damaged": "A file has lines that are cut off or were changed. They are skipped.",
    "dead_letters_tidied": "Files without open entries were removed.",
    "dead_letters_tidy_failed": "Such a file could not be removed.",
    "dead_letters_not_readings": "The automatic replay skipped lines that are no readings.",
    "replayed": "The automatic replay has sent so many readings again.",
    "replay_failed": "The automatic replay could not read or mark entries. It tries again.",
    # The journal
    "journal_recovered": "Readings of an earlier process were found in this file.",
    "journal_tail_cut": "The end of a file, which was never acknowledged, was cut off.",
    "journal_tail_not_cut": "That end could not be cut off. It is skipped.",
    "journal_damaged": "A file of the journal is damaged. Its intact readings are stored.",
    "journal_read_failed": "A file of the journal could not be read. It is tried again.",
    "journal_write_failed": "The disk did not take posts. They were refused.",
    "journal_still_not_writable": "A new file of the journal could not be made either.",
    "journal_writes_again": "The journal can be written again.",
    "journal_files_gone": "Somebody removed files of the journal while the service ran.",
    "journal_job_failed": "A bug: work of the journal's thread failed.",
    "journal_note_failed": "A note beside the journal could not be written.",
    "journal_tidy_failed": "A file of the journal that is done could not be removed.",
    "journal_left_behind": "There is a journal, and `--buffer memory` does not read it.",
    "file_system": "Data that is fsynced on this file system may be lost.",
}
