"""How long the oldest message of the stream has waited that no writer has done. No I/O.

The broker says how far the stream and its consumer are, and not when a message came that is not
done yet. So the places at each look are remembered, with the time.
Promises: exact to the time between two looks, or to a hundredth of the age. What was there before
the first look counts from that look on. A few hundred looks are remembered, however long it lasts.
"""

from __future__ import annotations

from ingest.broker.stream_state import StreamState

LOOKS_MAX = 256


class Undone:
    """Call `age_s` again and again with what is known now."""

    def __init__(self) -> None:
        self._looks: list[tuple[float, int]] = []  # when, and the newest place then
        self._made = ""
        self._pause_s = 0.0  # between two looks that are remembered

    def age_s(self, now_s: float, state: StreamState) -> float:
        """Return for how long the oldest message that is not done has been in the stream."""
        looks = self._looks
        if state.made != self._made:  # another stream: its places begin anew
            self._made = state.made
            looks.clear()
        if not looks or (state.last > looks[-1][1] and now_s - looks[-1][0] >= self._pause_s):
            looks.append((now_s, state.last))
        if not state.waiting and not state.pending:
            looks[:], self._pause_s = [(now_s, state.last)], 0.0
            return 0.0
        while len(looks) > 1 and looks[0][1] <= state.done_to:
            del looks[0]
        if len(looks) > LOOKS_MAX:
            del looks[1::2]
            self._pause_s = 2 * (now_s - looks[0][0]) / LOOKS_MAX
        return now_s - looks[0][0] if looks[0][1] > state.done_to else 0.0
