"""Posts with the client that openapi-python-client has made: an item, a list, and a faulty one.

`python generated.py FOLDER URL TOKEN`: it prints for each its status, and what the typed answer
says: how many readings were accepted, or the code of the problem.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

PACKAGE = "iot_ingest_the_data_port_client"


def main(folder: str, url: str, token: str) -> None:
    """Post, and print a line for each answer."""
    sys.path.insert(0, folder)
    package = importlib.import_module(PACKAGE)
    models: Any = importlib.import_module(f"{PACKAGE}.models")
    page = importlib.import_module(f"{PACKAGE}.api.readings.post_v1_readings")
    client = package.AuthenticatedClient(base_url=url, token=token)
    item = models.Reading(device_id="made", metric="m", value=1.5, ts="2026-11-30T00:00:00Z")
    values = models.ValuesValues.from_dict({"a": 1, "b": True})
    listed = [models.Reading(device_id="made", metric="n", value=2), models.Values("made", values)]
    for body in (item, listed, models.Reading(device_id="", metric="m", value=1)):
        answer = page.sync_detailed(client=client, body=body)
        told = answer.parsed
        print(int(answer.status_code), getattr(told, "accepted", None) or told.code.value)


if __name__ == "__main__":
    main(*sys.argv[1:])
