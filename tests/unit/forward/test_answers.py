"""What an answer means, and how long a target wants to be left alone."""

from __future__ import annotations

import pytest

from ingest.http_client.client import retry_after_s
from ingest.roles.forward.forwarder import is_refusal

NOW_S = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("statuses", "refused"),
    [
        ((408, 425, 429, 500, 502, 503, 599, 600, 999, 100, 101), False),
        ((300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 410, 413, 422), True),
    ],
)
def test_meaning_of_a_status(statuses: tuple[int, ...], refused: bool) -> None:
    """Only what speaks of this moment is tried again."""
    assert {is_refusal(each) for each in statuses} == {refused}


@pytest.mark.parametrize(
    ("text", "pause_s"),
    [
        ("0", 0),
        (" 7 ", 7),
        ("999999", 60),
        ("9" * 5_000, 60),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30),
        ("Tue, 14 Nov 2023 22:13:50 -0000", 30),
        ("Tue, 14 Nov 2023 23:13:50 +0100", 30),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60),
        ("", 0),
        ("-1", 0),
        ("1.5", 0),
        ("٣", 0),
        ("soon", 0),
        ("Tue, 99 Nov 2023", 0),
        ("\x00\xff", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_has_a_bound(text: str, pause_s: float) -> None:
    """What cannot be read asks for nothing."""
    assert retry_after_s(text, NOW_S, 60) == pytest.approx(pause_s)
