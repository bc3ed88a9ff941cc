"""All faults: importing their modules puts them into the list."""

from __future__ import annotations

from tests.faults import (
    broker_kill_faults,
    broker_power_faults,
    broker_stream_faults,
    connection_faults,
    controls,
    database_faults,
    disk_faults,
    operator_faults,
    power_faults,
    receiver_faults,
    service_faults,
    starved_faults,
    surroundings_faults,
    table_faults,
    years_clock_faults,
    years_disk_faults,
    years_kill_faults,
    years_operator_faults,
    years_together_faults,
)
from tests.faults.matrix import FAULTS

MODULES = (
    controls,
    database_faults,
    disk_faults,
    receiver_faults,
    connection_faults,
    operator_faults,
    power_faults,
    service_faults,
    starved_faults,
    surroundings_faults,
    table_faults,
)
BROKER_MODULES = (broker_power_faults, broker_kill_faults, broker_stream_faults)
YEARS_MODULES = (
    years_kill_faults,
    years_disk_faults,
    years_operator_faults,
    years_together_faults,
    years_clock_faults,
)
__all__ = ["BROKER_MODULES", "FAULTS", "MODULES", "YEARS_MODULES"]
