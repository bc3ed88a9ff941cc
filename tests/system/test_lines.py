"""Line protocol at the real service: what got a 204 is in the table once, also after kill -9."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest

from tests.system.service import Service

US = 1_790_000_000_000_000


def lines(device: str, count: int) -> bytes:
    """Return lines of one field; the value is the time in microseconds since US, and a half."""
    return b"\n".join(
        b"load,host=%b-%d,cpu=cpu%d user=%d.5 %d" % (device.encode(), n % 50, n % 4, n, US + n)
        for n in range(count)
    )


@pytest.mark.slow
async def test_killed_service_has_every_line_that_got_a_204(
    open_tmp_path: Path, readings_url: str
) -> None:
    """A post of 100,000 readings, small ones beside it, bad lines; then kill -9 and a start."""
    service = Service(open_tmp_path / "state", database_url=readings_url, database_unsafe=True)
    async with service:
        await service.wait_state("accepting")
        packed = await asyncio.to_thread(gzip.compress, lines("large", 100_000), 1)
        url = f"{service.url}/write?precision=u"
        headers = {"Content-Encoding": "gzip"}
        large = asyncio.create_task(service.request("POST", url, body=packed, headers=headers))
        for number in range(30):
            body = lines(f"small-{number}", 5) + b"\nload user=1\nload,host=x user=nan"
            url = f"{service.url}/api/v2/write?precision=us&bucket=b"
            reply = await service.request("POST", url, body=body)
            assert (reply.status, reply.text) == (204, "")
        assert (await large).status == 204
        await service.kill()
        await service.start()
        await service.wait_rows(100_150)
        samples = await service.wait_quiet()
        (row,) = await service.query(
            "select count(*), count(distinct (ts, device_id, metric)), count(*) filter (where"
            " value = (extract(epoch from ts) * 1000000)::bigint - $1 + 0.5) from readings",
            US,
        )
        assert tuple(row) == (100_150, 100_150, 100_150)
        assert samples["ingest_dlq_readings"] == 60
        assert samples["ingest_ledger_imbalance_rows"] == 0
