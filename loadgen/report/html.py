"""The report of a run as one HTML file, from the document of `report_json`.

Promises: nothing is loaded from elsewhere and there is no script; readable on a phone, in light and
dark; every text that came from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from loadgen.report.json import Document, duration
from loadgen.report.style import STYLE
from loadgen.report.svg import Series, chart, linear_axis, log_axis
from loadgen.report.text import QUANTILES

# Statuses that are drawn alike, in the order in which they are stacked.
GROUPS = (("2xx", "a", "2"), ("4xx", "c", "4"), ("429 and 5xx", "d", "5"), ("no answer", "e", "0"))


def html(document: Document) -> str:
    """Return the page."""
    settings = document["settings"]
    body = "\n".join(
        (
            _head(document),
            f'<section class="cards">{"".join(_cards(document))}</section>',
            *(f'<p class="says">{escape(said)}</p>' for said in _remarks(document)),
            *_charts(document),
            f'<div class="two"><section><h2>Latency</h2>{_latency(document)}</section>'
            f"<section><h2>Answers</h2>{_answers(document)}</section></div>",
            f"<section><h2>Posts and readings</h2>{_counts(document)}</section>",
            f"<details><summary>Settings and machine</summary>{_settings(document)}</details>",
            "<footer>Latency counts from the moment a post was due to its final answer, "
            "waiting and tries again included. Made by <code>loadgen run</code>; "
            f"seed {document['seed']}.</footer>",
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>Load on {escape(settings['url'])}</title>\n"
        f"<style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _head(document: Document) -> str:
    settings = document["settings"]
    good = document["all_right"]
    verdict = "every post was answered as it should" if good else "not all right"
    if document["interrupted"]:
        verdict = f"interrupted; {verdict}"
    return (
        f'<header><p class="verdict {"good" if good else "bad"}">{verdict}</p>'
        f"<h1>{escape(_sentence(settings))}</h1>"
        f'<p class="sub">{escape(settings["url"])} · '
        f"{escape(document['started_at'][:19].replace('T', ' '))} UTC · "
        f"{document['took_s']:.1f} s · {settings['connections']:,} connections</p></header>"
    )


def _sentence(settings: Mapping[str, Any]) -> str:
    if settings["loop"] == "closed":
        pace = "As fast as the answers come"
    elif settings["rate_posts_per_s"] is None:
        pace = _shape(settings["shape"])
    else:
        pace = f"{settings['rate_posts_per_s']:,.6g} posts a second"
        if settings["shape"] != "constant":
            pace += f", {settings['shape']}"
    sizes = [part.partition("x")[0] for part in settings["batch"].split(",")]
    each = f"{' or '.join(sizes)} reading{'' if sizes == ['1'] else 's'} each"
    return f"{pace}, {each}, from {settings['devices']:,} devices"


def _shape(text: str) -> str:
    """Say a shape that has its rates in it."""
    name, _, rest = text.partition(":")
    numbers = rest.replace("..", ",").replace(":", ",").split(",")
    if name == "ramp":
        return f"From {numbers[0]} to {numbers[1]} posts a second"
    if name == "burst":
        return (
            f"{numbers[0]} posts a second, {numbers[1]} for {numbers[3]}\u00a0s of every "
            f"{numbers[2]}\u00a0s"
        )
    return f"{rest.partition(':')[0].replace(',', ', ')} posts a second, one after the other"


def _cards(document: Document) -> Iterator[str]:
    rates, latency = document["rates"], document["latency_ms"]
    readings = document["readings"]
    yield _card(f"{rates['right_posts_per_s']:,.0f}", "posts/s answered as they should")
    yield _card(f"{rates['accepted_readings_per_s']:,.0f}", "readings/s accepted")
    if readings["committed"] is not None:
        yield _card(f"{readings['committed']:,}", "readings committed by the service")
    yield _card(duration(latency["p50"]), "p50 latency")
    yield _card(duration(latency["p99"]), "p99 latency")
    yield _card(duration(latency["max"]), "longest latency")


def _card(number: str, what: str) -> str:
    return f"<div><b>{escape(number)}</b><span>{escape(what)}</span></div>"


def _remarks(document: Document) -> Iterator[str]:
    yield from document["remarks"]
    if document["service"] is None:
        yield (
            "The service's /metrics was not read, so the charts have no rate of commits: "
            "--metrics-url says where it is."
        )
    elif document["service"]["held"]:
        yield f"The service still held {document['service']['held']:,.0f} readings at the end."


def _charts(document: Document) -> Iterator[str]:
    points = document["timeline"]["points"]
    at_s = [point["at_s"] for point in points]
    end_s = points[-1]["at_s"] + points[-1]["span_s"] / 2 if points else 0.0

    def of(name: str) -> list[float | None]:
        return [point[name] for point in points]

    latency = [
        Series("p99", "d", "line", of("p99_ms")),
        Series("p50", "a", "line", of("p50_ms")),
    ]
    axis = log_axis(_all(latency), _short)
    drawn = chart("Latency over time", at_s, end_s, latency, axis)
    yield _figure("Latency over time", "logarithmic; by the moment a post was due", latency, drawn)
    rates = [
        Series("offered", "f", "area", of("offered_readings_per_s")),
        Series("accepted", "a", "line", of("accepted_readings_per_s")),
    ]
    if document["service"] is not None:
        rates.append(Series("committed", "b", "dashed", of("committed_readings_per_s")))
    drawn = chart("Rates over time", at_s, end_s, rates, linear_axis(_all(rates), _count))
    note = "readings a second"
    if document["service"] is None:
        note += "; commits not known: the service's /metrics was not read"
    yield _figure("Offered, accepted, committed", note, rates, drawn)
    answers = [
        Series(name, style, "area", [_group(point["answers_per_s"], first) for point in points])
        for name, style, first in GROUPS
    ]
    answers = [each for each in answers if any(each.values)]
    totals = [sum(point["answers_per_s"].values()) for point in points]
    axis = linear_axis(totals, _count)
    drawn = chart("Answers over time", at_s, end_s, answers, axis, stacked=True)
    yield _figure("Answers by status", "answers a second, all tries", answers, drawn)


def _figure(title: str, note: str, series: Sequence[Series], drawn: str) -> str:
    legend = "".join(
        f'<li><i class="key {each.how} {each.style}"></i>{escape(each.name)}</li>'
        for each in series
    )
    return (
        f"<figure><figcaption><h2>{escape(title)}</h2><span>{escape(note)}</span>"
        f"<ul>{legend}</ul></figcaption>{drawn}</figure>"
    )


def _all(series: Sequence[Series]) -> list[float]:
    return [value for each in series for value in each.values if value is not None]


def _group(answers: Mapping[str, float], first: str) -> float:
    """Return the answers of one group; 429 asks to come again, as 503 does."""
    return sum(
        rate for status, rate in answers.items() if ("5" if status == "429" else status[0]) == first
    )


def _short(ms: float) -> str:
    """Return a duration for an axis: no more digits than it needs."""
    if ms >= 1000:
        return f"{ms / 1000:.3g} s"
    return f"{ms:.3g} ms" if ms >= 1 else f"{ms * 1000:.3g} us"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _latency(document: Document) -> str:
    latency = document["latency_ms"]
    rows = [(shown, duration(latency[name])) for name, shown in QUANTILES]
    return _table([*rows, ("mean", duration(latency["mean"])), ("posts", f"{latency['count']:,}")])


def _answers(document: Document) -> str:
    statuses = {"no answer" if each == "0" else each: n for each, n in document["statuses"].items()}
    whys = document["refusals"] | document["lost_why"]
    counts = statuses | {f"· {why}": n for why, n in whys.items()}
    counts["retries"] = document["posts"]["retries"]
    return _table([(name, f"{n:,}") for name, n in counts.items()])


def _counts(document: Document) -> str:
    posts, readings = document["posts"], document["readings"]
    rows = [(f"posts {name.replace('_', ' ')}", f"{n:,}") for name, n in posts.items()]
    rows += [
        (f"readings {name.replace('_', ' ')}", "not known" if n is None else f"{n:,}")
        for name, n in readings.items()
    ]
    rows += [(f"mixed in: {name}", f"{n:,}") for name, n in document["mixed_in"].items()]
    return f'<div class="columns">{_table(rows)}</div>'


def _settings(document: Document) -> str:
    generator = document["generator"]
    shown = {
        **document["settings"],
        **document["machine"],
        "generator's CPU": f"{generator['cpu_share']:.0%} of a core",
        "posts it was itself late with": f"{generator['lagged_posts']:,}",
        "by at most": duration(generator["lag_ms_max"]),
    }
    rows = [(name, "-" if value is None else str(value)) for name, value in shown.items()]
    return f'<div class="columns">{_table(rows)}</div>'


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{cells}</table>"
