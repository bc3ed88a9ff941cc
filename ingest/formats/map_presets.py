"""The mappings that are part of the package: the keys of a source for well-known senders.

The body of each was read in the sender's own code, and tests/unit/formats/test_map_presets.py has
one of each. A key of the user's table replaces that of the preset.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The Things Stack, webhook. Joins and acknowledgements have no uplink_message. The name of a
    # device is its own only within an application.
    "ttn": {
        "when": {"uplink_message": "*"},
        "device": "{end_device_ids.application_ids.application_id}/{end_device_ids.device_id}",
        "time": ["uplink_message.received_at", "received_at"],
        "values": "uplink_message.decoded_payload",
    },
    # ChirpStack 4, HTTP integration: all events come to one URL.
    "chirpstack": {
        "when": {"$query.event": "up"},
        "device": "deviceInfo.devEui",
        "time": "time",
        "values": "object",
    },
    # Devices of ThingsBoard; ChirpStack's ThingsBoard integration posts attributes first.
    "thingsboard": {
        "path": "/api/v1/{token}/telemetry",
        "ignored_paths": ["/api/v1/{token}/attributes"],
        "device": "$token.device",
        "time": "ts",
        "time_unit": "ms",
        "values": ["values", "."],
        "except": ["ts"],
        "numeric_strings": True,
    },
    # Sensor.Community airRohr, its own API.
    "airrohr": {
        "device": "airrohr-{esp8266id}",
        "values": "sensordatavalues[]",
        "metric": "value_type",
        "value": "value",
        "numeric_strings": True,
    },
    # AirGradient, with its server set to ours.
    "airgradient": {
        "path": "/sensors/airgradient:{device}/measures",
        "device": "$path.device",
        "values": ".",
        "except": ["boot*"],
    },
    # Ruuvi Gateway, "decoded".
    "ruuvi": {
        "rows": "data.tags{}",
        "device": "$key",
        "time": ["timestamp", "^data.timestamp"],
        "time_unit": "s",
        "values": ".",
        "except": ["timestamp", "ble_*"],
    },
    # Ecowitt and its clones: a form, with times in UTC.
    "ecowitt": {
        "device": "PASSKEY",
        "time": "dateutc",
        "time_unit": "utc",
        "values": ".",
        "except": ["PASSKEY", "runtime", "dateutc"],
        "numeric_strings": True,
    },
    # Telegraf, outputs.http with data_format = "json".
    "telegraf_json": {
        "rows": "metrics[]",
        "device": "tags.host",
        "time": "timestamp",
        "values": "fields",
        "metric": "{name}.{$key}",
        "tags": "tags",
    },
    # Vector, http sink, logs and other events with a host.
    "vector": {"device": "host", "time": "timestamp", "values": "."},
    # Fluent Bit, http output, format json or json_lines.
    "fluentbit": {
        "device": ["host", "hostname"],
        "time": "date",
        "values": ".",
        "except": ["date"],
    },
}
