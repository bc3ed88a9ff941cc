r"""The escapes of line protocol, as marks: then a line is split at its `,`, `=` and spaces alone.

A `\` before `,`, `=` or space is not in a name, but says that the name has that character. What it
is before another character depends on who wrote the line. InfluxDB has no other escapes: each `\`
is itself, also before another one, so `a\\ b` is the name `a\ b`. QuestDB's clients write `\\` for
a backslash, and `\` before a line feed.
A mark has as many bytes as its escape: MARK, and a letter. MARK is in no UTF-8, so in no name.
"""

from __future__ import annotations

MARK = b"\xff"
MARK_BYTE, BACKSLASH = 0xFF, 0x5C  # a number is found in bytes in a tenth of the time
INFLUXDB, QUESTDB = "influxdb", "questdb"  # who decides what an escape is
ESCAPED_EQUALS = MARK + b"e"  # is no escape in a measurement

_SPECIAL_IN_TAG = "\\,="  # the backslash comes first: the others put in some of their own
SPECIAL = _SPECIAL_IN_TAG + "."
_NOT_UTF8 = b"\xfe"
_MARKS = ((b",", MARK + b"c"), (b"=", ESCAPED_EQUALS), (b" ", MARK + b"s"))
# The backslash is the first one: in `\\,` it is escaped, and the comma is not.
_ALL_MARKS = ((b"\\", MARK + b"b"), *_MARKS, (b"\n", MARK + b"n"))
_MARKS_OF = {INFLUXDB: _MARKS, QUESTDB: _ALL_MARKS}


def marked(text: bytes, escapes: str) -> bytes:
    """Return whole lines with marks in place of escapes. The size stays the same."""
    if MARK_BYTE in text:
        text = text.replace(MARK, _NOT_UTF8)
    if BACKSLASH in text:
        for character, mark in _MARKS_OF[escapes]:
            text = text.replace(b"\\" + character, mark)
    return text


def name_marked(name: str, escapes: str) -> bytes:
    """Return a name as it is in a marked text."""
    text = name.encode()
    for character, mark in _MARKS_OF[escapes]:
        text = text.replace(character, mark)
    return text


def name_of(text: bytes) -> str:
    """Return the name that a marked text is. Raises UnicodeDecodeError."""
    if MARK_BYTE in text:
        for character, mark in _ALL_MARKS:
            text = text.replace(mark, character)
    return text.decode()


def as_posted(text: bytes) -> bytes:
    """Return a marked text with its escapes."""
    if MARK_BYTE in text:
        for character, mark in _ALL_MARKS:
            text = text.replace(mark, b"\\" + character)
    return text


def tags_text(tags: dict[str, str]) -> str:
    """Return tags as they stand behind a metric."""
    named = sorted(tags.items())
    text = "".join([f",{name}={value}" for name, value in named])
    if "\\" in text or text.count(",") + text.count("=") > 2 * len(named):
        mark = _SPECIAL_IN_TAG
        pairs = [f",{escaped(name, mark)}={escaped(value, mark)}" for name, value in named]
        text = "".join(pairs)
    return text


def escaped(name: str, special: str) -> str:
    """Return a name with a backslash before each of these characters."""
    for each in special:
        if each in name:
            name = name.replace(each, "\\" + each)
    return name
