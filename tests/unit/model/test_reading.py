"""Names: which texts may be a device_id or a metric."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.model.codes import ITEM_CODES
from ingest.model.reading import NAME_BYTES_MAX, NAME_CHARACTERS_MAX, name_fault


@pytest.mark.parametrize(
    "name",
    [
        "a",
        " ",
        "pump 1/north",
        "Temperatur °C",
        "温度",
        "😀",
        "n" * 256,
        "é" * 256,
        '"',
        "\\",
        "\xa0",
    ],
)
def test_name_within_limits_is_accepted(name: str) -> None:
    """Any script, spaces and punctuation make a name, up to 256 characters and 512 bytes."""
    assert name_fault(name) is None


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("", "name_empty", "empty"),
        ("n" * 257, "name_too_long", "257 characters"),
        ("温" * 171, "name_too_long", "513 bytes"),
        ("n" * 1_000_000, "name_too_long", "1000000 characters"),
        ("a\0", "name_control_character", "U+0000 at position 1"),
        ("\n", "name_control_character", "U+000A at position 0"),
        ("\x7f", "name_control_character", "U+007F"),
        ("ab\x85", "name_control_character", "U+0085 at position 2"),
        ("\ud800", "name_control_character", "surrogate"),
    ],
)
def test_name_outside_limits_is_named_with_code_and_reason(name: str, code: str, said: str) -> None:
    """Each fault has its code, and a message that says what was found."""
    fault = name_fault(name)
    assert fault is not None
    assert fault[0] == code
    assert said in fault[1]


@given(st.text(max_size=270))
def test_name_fault_agrees_with_the_contract(name: str) -> None:
    """1 to 256 characters, at most 512 bytes of UTF-8, no control characters: nothing else."""
    sound = (
        1 <= len(name) <= NAME_CHARACTERS_MAX
        and len(name.encode(errors="surrogatepass")) <= NAME_BYTES_MAX
        and not any(unicodedata.category(each) in ("Cc", "Cs") for each in name)
    )
    fault = name_fault(name)
    assert (fault is None) == sound
    assert fault is None or fault[0] in ITEM_CODES
