"""A client writes once with a wrong token, and then through all faults."""

from __future__ import annotations

import json
from typing import NamedTuple

from tests.clients import mqtt
from tests.clients.judge import Verdict, judge
from tests.clients.libraries import Client, Libraries
from tests.clients.points import make_points
from tests.clients.running import Faults, World, make_token, of, run_client
from tests.clients.senders.common import WRONG


class Result(NamedTuple):
    """What came of one client. `said` is what it says if its token is wrong."""

    client: Client
    version: str
    verdict: Verdict
    said: str
    tries: int  # how often it showed an error while it wrote


async def try_client(
    world: World, libraries: Libraries, client: Client, *, points: int, seed: int
) -> Result:
    """Let a client write through both faults, and once with a wrong token."""
    token = await make_token(world.service.state_dir, client.measurement)
    all_points, wrong = make_points(points, seed), f"{client.measurement}_wrong"
    file = world.service.state_dir.parent / "points.json"
    order: dict[str, object] = {"url": world.service.url, "file": str(file)}
    file.write_text(json.dumps(all_points[:1]))
    refused = {"token": WRONG, "measurement": wrong, "gates": []}
    wrong_order = {**order, **refused}
    if client.needs_broker:
        refusals = await mqtt.refused(world, libraries, client, wrong_order)
    else:
        _, refusals = await run_client(libraries, client, wrong_order, [])
    file.write_text(json.dumps(all_points))
    order |= {"token": token, "measurement": client.measurement}
    order["gates"] = [points // 5, points // 2]
    faults: Faults = [world.restart_database, world.kill_service]
    run = mqtt.written if client.needs_broker else written
    told, said = await run(world, libraries, client, order, faults)
    rows = await world.rows()
    verdict = judge(all_points, told, of(client.measurement, rows), client.measurement)
    return Result(
        client=client,
        version=libraries.version(client),
        verdict=verdict._replace(from_wrong_token=len(of(wrong, rows))),
        said=refusals[0] if refusals else "",
        tries=len(said),
    )


async def written(
    _world: World, libraries: Libraries, client: Client, order: dict[str, object], faults: Faults
) -> tuple[set[int], list[str]]:
    """Write straight to the service."""
    return await run_client(libraries, client, order, faults)
