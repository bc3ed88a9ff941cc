"""Small parts of the texts that people read: a number with its noun, a client's text in quotes."""

from __future__ import annotations

QUOTED_CHARACTERS_MAX = 60


def counted(number: int, noun: str) -> str:
    """Return `1 letter`, `2 letters`; for nouns whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Return `40 s`, `25 min`, `11 h 5 min` or `3 d 4 h`."""
    for unit_s, unit, part_s, part in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min")):
        if seconds >= unit_s:
            whole, rest = divmod(int(seconds), unit_s)
            return f"{whole} {unit} {rest // part_s} {part}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def quoted(text: str) -> str:
    """Return a client's text, fit for a message or a log line: in quotes, plain ASCII, cut off."""
    if len(text) <= QUOTED_CHARACTERS_MAX:
        return ascii(text)
    return f"{text[:QUOTED_CHARACTERS_MAX]!a}.."
