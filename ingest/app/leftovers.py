"""What the other kind of service has left in a state folder: `serve` in files, `up` in its broker.

Neither of them reads what the other one keeps. So it does not start while something waits there.
`serve` need not start the broker to see that: who has run the embedded broker notes at its end what
is left. Without a note, as after a kill, something may be left.
Does not: move readings or dead letters. The old kind, run once more, writes them to the table.
"""

from __future__ import annotations

import contextlib

import msgspec

from ingest.buffers.journal.reader import has_blocks
from ingest.dead_letters.folder.segments import live_letters
from ingest.model.errors import StartError
from ingest.system.files import replace_private
from ingest.system.state_folder import StateFolder


class LeftInBroker(msgspec.Struct, frozen=True):
    """What a broker holds that is not done: messages with readings, and dead letters."""

    messages: int
    dead_letters: int


def note_left(folder: StateFolder, left: LeftInBroker) -> None:
    """Note what the embedded broker holds, before it is stopped. Raises OSError.

    The broker removes the note when it starts.
    """
    replace_private(folder.broker_left, msgspec.json.encode(left), sync=True)


def refuse_left_stream(folder: StateFolder, who: str = "ingest serve") -> None:
    """Raise StartError for `who`, if `up` may have left something in its embedded broker."""
    if not any((folder.broker / "store" / "jetstream").glob("*/streams/*")):
        return
    what = "may have left readings (`ingest stream show` finds out, and notes it)"
    with contextlib.suppress(OSError, msgspec.DecodeError):
        left = msgspec.json.decode(folder.broker_left.read_bytes(), type=LeftInBroker)
        if not (left.messages or left.dead_letters):
            return
        what = (
            f"has left {left.messages:,} messages with readings, {left.dead_letters:,} dead letters"
        )
    raise StartError(
        f"`ingest up` {what} in its broker ({folder.broker}), and `{who}` does not read "
        "them: start `ingest up` again, replay or discard its dead letters (`ingest dlq list`), "
        "and stop it when its readings are written (`ingest stream show`); then start "
        f"`{who}`"
    )


def refuse_left_files(folder: StateFolder) -> None:
    """Raise StartError for `up`, if `serve` has left something in its files. Blocks."""
    left = []
    try:
        if has_blocks(folder.journal):
            left.append(f"readings in its journal ({folder.journal})")
        if next(live_letters(folder.dead_letters), None) is not None:
            left.append(f"dead letters ({folder.dead_letters})")
    except OSError as error:
        raise StartError(f"cannot read {error.filename}: {error.strerror}") from error
    if left:
        raise StartError(
            f"`ingest serve` has left {' and '.join(left)}, and `ingest up` does not read them: "
            "start `ingest serve` again, replay or discard its dead letters (`ingest dlq list`), "
            "and stop it when its readings are written (its last line says held=0); then start "
            "`ingest up`"
        )
