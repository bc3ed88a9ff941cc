"""The report of a run as lines for people, from the document of report/json.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loadgen.measure.find_max import Step
from loadgen.report.json import Document, duration
from loadgen.words import counted

QUANTILES = (("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p99_9", "p99.9"), ("max", "max"))


STEP_HEAD = (
    f"{'posts/s':>10} {'answered/s':>11} {'committed/s':>12} {'p50':>9} {'p99':>9} {'max':>9} "
    f"{'generator':>9}  result"
)


def text(document: Document) -> str:
    """Return the summary."""
    return "\n".join(_lines(document))


def _lines(document: Document) -> Iterator[str]:
    posts, readings, rates = document["posts"], document["readings"], document["rates"]
    latency, generator = document["latency_ms"], document["generator"]
    if document["interrupted"]:
        yield "interrupted: this is what happened until then"
    yield (
        f"posts       {posts['offered']:,} offered ({rates['offered_posts_per_s']:,.0f}/s), "
        f"{posts['right']:,} answered as they should ({rates['right_posts_per_s']:,.0f}/s) "
        f"in {document['took_s']:.1f} s"
    )
    committed = ""
    if readings["committed"] is not None:
        # A process that was restarted has counted what nobody could read any more.
        committed = (
            f", {'at least ' if readings['committed'] < readings['accepted'] else ''}"
            f"{readings['committed']:,} committed by the service"
        )
    yield (
        f"readings    {readings['offered']:,} offered, {readings['accepted']:,} accepted "
        f"({rates['accepted_readings_per_s']:,.0f}/s), {readings['dead_lettered']:,} dead-lettered"
        + committed
    )
    if document["mixed_in"]:
        yield f"mixed in    {_counts(document['mixed_in'])}"
    yield "latency     " + "  ".join(
        f"{shown} {duration(latency[name])}" for name, shown in QUANTILES
    )
    statuses = {"no answer" if each == "0" else each: n for each, n in document["statuses"].items()}
    yield f"answers     {_counts(statuses) or 'none'}; {posts['retries']:,} retries"
    if document["refusals"]:
        yield f"refusals    {_counts(document['refusals'])}"
    if document["lost_why"]:
        yield f"no answer   {_counts(document['lost_why'])}"
    yield from _wrong(posts)
    if posts["unsent"]:
        yield f"not sent    {counted(posts['unsent'], 'post')} due when it was stopped"
    yield (
        f"generator   {generator['cpu_share']:.0%} of a core, itself late with "
        f"{counted(generator['lagged_posts'], 'post')}, "
        f"by {duration(generator['lag_ms_max'])} at most"
    )
    yield from document["remarks"]
    if not document["all_right"]:
        yield "NOT ALL RIGHT: see above" if posts["offered"] else "NOT ALL RIGHT: nothing was sent"


def _wrong(posts: Mapping[str, Any]) -> Iterator[str]:
    stored = posts["lost_may_be_stored"]
    what = {
        "refused": "refused for good",
        "not_whole": "answered 2xx, but not with all readings accepted",
        "undeserved": "answered otherwise than they were made for",
        "lost": "given up without a final answer"
        + (f" ({stored:,} may be stored)" if stored else ""),
        "skipped": "not sent: too many were open, or they were due for too long (--behind-s)",
    }
    for name, shown in what.items():
        if posts[name]:
            yield f"wrong       {counted(posts[name], 'post')} {shown}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())


def step(step: Step) -> str:
    """Return one rate of a search as a line under STEP_HEAD; committed are readings."""
    p50, p99, longest = (duration(step.latency_ms[name]) for name in ("p50", "p99", "max"))
    committed = "-" if step.committed_per_s is None else f"{step.committed_per_s:,.0f}"
    result = step.why or ("passed again" if step.confirming else "passed")
    return (
        f"{step.rate:>10,.0f} {step.answered_per_s:>11,.0f} {committed:>12} {p50:>9} {p99:>9} "
        f"{longest:>9} {step.cpu_share:>9.0%}  {result}"
    )


def found(document: Document) -> str:
    """Return the result of a search."""
    settings, rate = document["settings"], document["found_posts_per_s"]
    bound = f"p99 under {settings['p99_ms']:g} ms, nothing refused, lost or unsent"
    if document["interrupted"]:
        said = "interrupted: the search did not come to its end"
    elif rate is None:
        said = f"no rate was found: {bound}"
    else:
        said = f"highest rate: {rate:,.0f} posts/s ({bound})"
    if document["generator_was_limit"]:
        said += (
            "\nThe load generator itself was the limit: the service may take more than it can send."
        )
    return said
