"""The metrics: all of the contract exist, are well formed, and show the ledger."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ingest.admin.exposition import Exposition
from ingest.app import space
from ingest.app.metrics_and_causes import own_metrics
from ingest.config.settings import Settings
from ingest.model.ledger import (
    SECONDS_COMMIT,
    DeadLetterStats,
    Gauges,
    Histogram,
    Ledger,
    figures_of,
)
from ingest.model.ports import STATES, BufferStats
from ingest.model.reading import REASONS
from ingest.system.clock import monotonic_s

NAMES = """
ingest_http_requests_total{route,code}
ingest_readings_received_total ingest_readings_accepted_total ingest_readings_committed_total
ingest_readings_duplicate_total ingest_readings_recovered_total ingest_readings_replayed_total
ingest_readings_published_total ingest_readings_delivered_total ingest_readings_returned_total
ingest_readings_dropped_total
ingest_readings_rejected_total{code} ingest_readings_dead_lettered_total{reason}
ingest_line_fields_changed_total{how} ingest_events_ignored_total{source}
ingest_flush_total{trigger} ingest_retries_total{verdict}
ingest_readings_held ingest_ledger_imbalance_rows ingest_buffer_rows ingest_buffer_rows_max
ingest_buffer_bytes ingest_buffer_oldest_age_seconds ingest_db_up ingest_hold{reason}
ingest_dlq_bytes ingest_dlq_readings ingest_dlq_oldest_age_seconds ingest_build_info{version}
ingest_http_request_duration_seconds{route} ingest_flush_rows
ingest_flush_duration_seconds{method} ingest_commit_latency_seconds ingest_event_lag_seconds
ingest_buffer_used_ratio ingest_journal_bytes ingest_journal_segments ingest_journal_damaged_total
ingest_journal_sync_seconds ingest_state{state}
ingest_posts_refused_total{code} ingest_connections_closed_total{cause}
ingest_journal_bytes_max ingest_dlq_bytes_max ingest_dlq_invalid_full
ingest_dlq_share_used
ingest_disk_free_bytes ingest_disk_free_bytes_min
"""
HISTOGRAMS = {
    "ingest_http_request_duration_seconds",
    "ingest_flush_rows",
    "ingest_flush_duration_seconds",
    "ingest_commit_latency_seconds",
    "ingest_event_lag_seconds",
    "ingest_journal_sync_seconds",
}


def busy() -> Ledger:
    """Return a ledger in which everything has happened once."""
    ledger = Ledger()
    held = BufferStats(7, 100, 700, 10_000, 5, 2, 0, monotonic_s() - 3)
    ledger.gauges = Gauges(
        buffer=lambda: held,
        dead_letters=lambda: DeadLetterStats(1_000, 4, 60.0),
        database_up=lambda: True,
        hold_reason=lambda: "schema",
        state=lambda: "on_hold",
        figures=figures_of((space.METRICS, lambda: space.Fill(Settings()))),
    )
    ledger.received, ledger.accepted = 100, 96
    ledger.at_receiver = 2
    ledger.request_answered("readings", 202, 0.002)
    ledger.request_answered("readings", 503, 1.002)
    ledger.batch_gathered("count", 100)
    ledger.batch_stored("copy", 0.01, 80, 5)
    ledger.dead_lettered[REASONS[0]] += 4
    ledger.rejected["all_invalid"] += 2
    ledger.posts_refused["all_invalid"] += 1
    ledger.connection_closed("slow_body")
    ledger.retries["retry"] += 1
    ledger.events_ignored["ttn"] += 1
    ledger.commit_s.observe(0.03)
    ledger.lag_s.observe(1e9)
    ledger.journal_sync_s.observe(0.0003)
    return ledger


def samples(source: Ledger | Exposition) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, labels and value of each sample as a scraper parses them."""
    shown = source if isinstance(source, Exposition) else own_metrics(source)
    for family in text_string_to_metric_families(shown.text().decode()):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def test_every_metric_of_the_contract_is_exported_with_its_labels() -> None:
    """The names do not change, because dashboards and alerts use them."""
    exported: dict[str, set[str]] = {}
    for name, labels, _ in samples(busy()):
        family = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        plain = family if family in HISTOGRAMS else name
        exported.setdefault(plain, set()).update(labels.keys() - {"le"})
    expected = {}
    for word in NAMES.split():
        name, _, names = word.partition("{")
        expected[name] = set(filter(None, names.rstrip("}").split(",")))
    assert {name: exported.get(name) for name in expected} == expected
    ours = {name for name in exported if name.startswith("ingest_")}
    assert ours == expected.keys()


def test_closed_label_sets_are_there_from_the_first_scrape() -> None:
    """Counters are 0 before the first event, as `rate()` needs it."""
    fresh = list(samples(Ledger()))
    labels = {(name, value) for name, has, number in fresh for value in has.values() if number == 0}
    for reason in REASONS:
        assert ("ingest_readings_dead_lettered_total", reason) in labels
    for trigger in ("count", "time", "commit", "backlog", "drain"):
        assert ("ingest_flush_total", trigger) in labels
    for verdict in ("wait", "retry", "isolate", "hold"):
        assert ("ingest_retries_total", verdict) in labels


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus"
)
def test_exposition_passes_promtool() -> None:
    """Prometheus' linter finds nothing, at the first scrape and later."""
    for ledger in (Ledger(), busy()):
        done = subprocess.run(
            ["promtool", "check", "metrics"],
            input=own_metrics(ledger).text(),
            capture_output=True,
            timeout=30,
            check=False,
        )
        said = (done.stdout + done.stderr).decode()
        ours = [line for line in said.splitlines() if line.startswith("ingest_")]
        assert not ours, said
        assert done.returncode == 0, said


def test_state_is_one_of_all_those_that_readyz_may_say() -> None:
    """Each state has a series from the first scrape on, so that an alert can resolve."""
    told = {has["state"]: value for name, has, value in samples(busy()) if name == "ingest_state"}
    assert told == {each: float(each == "on_hold") for each in STATES}


def test_hold_that_is_over_goes_to_zero_instead_of_vanishing() -> None:
    """After the pause its series is 0 and does not disappear, so that an alert can resolve."""
    ledger = busy()
    shown = own_metrics(ledger)
    assert ledger.gauges is not None
    for reason in ("schema", "breaker", None):
        ledger.gauges = ledger.gauges._replace(hold_reason=lambda reason=reason: reason)  # type: ignore[misc]
        told = {
            has["reason"]: value for name, has, value in samples(shown) if name == "ingest_hold"
        }
        assert told == {each: float(each == reason) for each in told}
        assert "schema" in told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("disk_free_bytes", {"here": 1}),
        ("disk_free_bytes", "much"),
        ("consumer_pending", 5),
        ("consumer_pending", {"writer": [1]}),
        ("of_another_version", 1),
    ],
)
def test_figure_of_another_form_is_left_out(name: str, value: Any) -> None:
    """Another process may be of another version. All else is shown."""
    ledger = busy()
    assert ledger.gauges is not None
    figures = {**ledger.gauges.figures(), name: value}
    ledger.gauges = ledger.gauges._replace(figures=lambda: figures)
    shown = {each for each, _, _ in samples(ledger)}
    assert f"ingest_{name}" not in shown
    assert "ingest_dlq_bytes_max" in shown


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_histogram_buckets_are_cumulative_and_complete(values: list[float]) -> None:
    """Each bucket counts the values up to its bound; the last one counts all."""
    histogram = Histogram(SECONDS_COMMIT)
    for value in values:
        histogram.observe(value)
    buckets = histogram.cumulative()
    assert [float(bound) for bound, _ in buckets] == [*SECONDS_COMMIT, float("inf")]
    for bound, count in buckets:
        assert count == sum(value <= float(bound) for value in values)
    assert histogram.total == pytest.approx(sum(values))


amounts = st.integers(0, 1_000)


@given(st.lists(amounts, min_size=7, max_size=7), st.integers(-50, 50))
def test_imbalance_is_exactly_what_was_lost_or_counted_twice(rows: list[int], lost: int) -> None:
    """The balance check is positive if readings vanished, negative if some were counted twice."""
    committed, duplicate, rejected, aside, held, at_receiver, came_back = rows
    ledger = Ledger()
    stats = BufferStats(held, 0, 0, 0, 0, 0, 0, None)
    ledger.gauges = Gauges(lambda: stats, DeadLetterStats, lambda: True, lambda: None)
    ledger.at_receiver = at_receiver
    ledger.batch_stored("copy", 0.1, committed, duplicate)
    ledger.rejected["all_invalid"] += rejected
    for reason in REASONS:
        ledger.dead_lettered[reason] += aside
    ledger.replayed, ledger.recovered = came_back, came_back
    total = committed + duplicate + rejected + len(REASONS) * aside + held + at_receiver
    ledger.received = total - 2 * came_back + lost
    assert ledger.held == held + at_receiver
    assert ledger.imbalance == lost
