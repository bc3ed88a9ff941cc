"""Posts of clients that no test here can run (Go, Java, Rust), in the forms of their bytes.

They are written after the sources and documents of the clients, and were not recorded.
"""

from __future__ import annotations

import base64
import gzip

import pytest

from tests.support import tokens
from tests.support.receiver import running_receiver

TAGS = r"room,device=hall\ 1\,ü,place=a\=b\ c "
NS, MS = 1_790_000_000_123_456_000, 1_790_000_000_123
BASIC = "Basic " + base64.b64encode(f"any:{tokens.SECRET}".encode()).decode()
TOKEN = f"Token {tokens.SECRET}"
# From the client to: target, headers, body, and whether it is compressed.
POSTS: dict[str, tuple[str, dict[str, str], str, bool]] = {
    "influxdb-client-go": (
        "/api/v2/write?bucket=home&org=org&precision=ns",
        {"User-Agent": "influxdb-client-go/2.14.0 (linux; amd64)", "Authorization": TOKEN},
        f'{TAGS}count=4i,on=true,temperature=21.5,text="on",uint=7u {NS}\n',
        False,
    ),
    "influxdb-client-go, gzip": (
        "/api/v2/write?bucket=home&org=org&precision=ms",
        {"User-Agent": "influxdb-client-go/2.14.0 (linux; amd64)", "Authorization": TOKEN},
        f'{TAGS}count=4i,on=true,temperature=21.5,text="on",uint=7u {MS}\n',
        True,
    ),
    "influxdb-client-java": (
        "/api/v2/write?org=org&bucket=home&precision=ms",
        {
            "User-Agent": "influxdb-client-java/7.2.0",
            "Authorization": TOKEN,
            "Content-Type": "text/plain; charset=utf-8",
            "Accept": "application/json",
        },
        f'{TAGS}count=4i,on=true,temperature=21.5,text="on",uint=7u {MS}',
        True,
    ),
    "influxdb-java": (
        f"/write?u=any&p={tokens.SECRET}&db=home&precision=n&consistency=one",
        {"User-Agent": "influxdb-java/2.25", "Content-Type": "text/plain; charset=utf-8"},
        f'{TAGS}count=4i,on=true,temperature=21.5,text="on",uint=7i {NS}\n',
        False,
    ),
    "influxdb (Rust)": (
        f"/write?db=home&p={tokens.SECRET}&u=any&precision=ns",
        {"Accept": "*/*"},
        f'{TAGS}temperature=21.5,count=4i,on=true,uint=7u,text="on" {NS}',
        False,
    ),
    "influxdb2 (Rust)": (
        "/api/v2/write?bucket=home&org=org&precision=ns",
        {"Authorization": TOKEN, "Accept": "*/*"},
        f'{TAGS}count=4i,on=true,temperature=21.5,text="on",uint=7i {NS}\n',
        False,
    ),
    "go-questdb-client": (
        "/write",
        {"User-Agent": "Go-http-client/1.1", "Authorization": BASIC, "Accept-Encoding": "gzip"},
        f'{TAGS}temperature=2.15E+01,count=4i,on=t,text="on",uint=7i {NS}\n',
        False,
    ),
    "org.questdb (Java)": (
        "/write?precision=n",
        {"User-Agent": "QuestDB/java/9.1.0", "Authorization": BASIC},
        f'{TAGS}temperature=21.5,count=4i,on=t,text="on",uint=7i {NS}\n',
        False,
    ),
}


@pytest.mark.parametrize("client", POSTS)
async def test_post_is_kept_as_its_client_means_it(client: str) -> None:
    """Device, metric, value and time of each field; a text is none."""
    target, headers, text, is_packed = POSTS[client]
    body = text.encode()
    if is_packed:
        body, headers = gzip.compress(body), {**headers, "Content-Encoding": "gzip"}
    lines = [f"POST {target} HTTP/1.1", "Host: 127.0.0.1:8080", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    async with running_receiver(tokens.in_force(tokens.line())) as receiver:
        reply = await receiver.send("\r\n".join([*lines, "", ""]).encode() + body)
        assert (reply.status, reply.body) == (204, b"")
        kept = {each.metric: each for each in receiver.inlet.readings}
        assert {metric: each.value for metric, each in kept.items()} == {
            rf"room.{field},place=a\=b c": value
            for field, value in (("temperature", 21.5), ("count", 4), ("on", 1), ("uint", 7))
        }
        assert {each.device_id for each in kept.values()} == {"hall 1,ü"}
        (ts_us,) = {each.ts_us for each in kept.values()}
        assert ts_us in (NS // 1_000, MS * 1_000)
        assert receiver.ledger.line_fields["text_ignored"] == 1
