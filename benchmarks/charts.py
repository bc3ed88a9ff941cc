"""Bars with their spread as a self-contained SVG that reads on light and on dark pages."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, LABEL_WIDTH, VALUE_WIDTH = 760, 250, 130
ROW, BAR, TOP, BOTTOM = 30, 16, 34, 10
STYLE = """text{font:13px system-ui,sans-serif;fill:#1f2328}.unit{fill:#656d76}
.other{fill:#8c959f}.ours{fill:#1f6feb}.spread{stroke:#1f2328;stroke-width:1.5}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.unit{fill:#8d96a0}.other{fill:#6e7681}
.ours{fill:#4493f8}.spread{stroke:#e6edf3}}"""


class Bar(NamedTuple):
    """One bar: all its values, of which the median is drawn, and the least and most as a line."""

    label: str
    values: Sequence[float]
    ours: bool


def shown(value: float) -> str:
    """Write a number for a reader: four digits that say something, thousands apart."""
    if value == 0 or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def bars(title: str, unit: str, drawn: Sequence[Bar]) -> str:
    """Return the SVG. Each bar has at least one value; all are 0 or more."""
    most = max((max(bar.values) for bar in drawn), default=0.0) or 1.0
    per_unit = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / most
    height = TOP + ROW * len(drawn) + BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text class="unit" x="{LABEL_WIDTH}" y="18">{escape(unit)}</text>',
    ]
    for number, bar in enumerate(drawn):
        top = TOP + ROW * number
        middle = top + BAR / 2
        median = statistics.median(bar.values)
        end, low, high = (
            LABEL_WIDTH + value * per_unit for value in (median, min(bar.values), max(bar.values))
        )
        kind = "ours" if bar.ours else "other"
        lines += [
            f'<text x="{LABEL_WIDTH - 10}" y="{middle + 4.5:.1f}" text-anchor="end">'
            f"{escape(bar.label)}</text>",
            f'<rect class="{kind}" x="{LABEL_WIDTH}" y="{top}" rx="2" height="{BAR}" '
            f'width="{max(1.0, end - LABEL_WIDTH):.1f}"/>',
            f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
            f'<text x="{high + 8:.1f}" y="{middle + 4.5:.1f}">{shown(median)}</text>',
        ]
    lines.append("</svg>")
    return "\n".join(lines) + "\n"
