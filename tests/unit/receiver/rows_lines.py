"""Rows of the pages for line protocol: answers, dialects, faulty lines, questions, limits."""

from __future__ import annotations

import base64
from typing import Any

from ingest.model.errors import (
    BufferFull,
    DeadLettersBroken,
    DeadLettersFull,
    JournalBroken,
    Stopping,
)
from ingest.model.reading import LINE
from ingest.receiver.pages.lines import VERSION
from tests.support.receiver import OTHER, SECRET, head, line
from tests.unit.receiver.rows import Group, Row, request

TS = 1_750_000_000
LINE_A = b"cpu,host=h,cpu=cpu0 idle=1.5 %d" % TS
KEPT = [(TS * 10**6, "h", "cpu.idle,cpu=cpu0", 1.5)]
PATHS = ("/write", "/api/v2/write", "/api/v3/write_lp", "/influx/write", "/influx/api/v2/write")
IGNORED = "db=x&rp=&org=o&bucket=b&consistency=any&u=user&zzz=1&precision=s"
CHUNKED = {"Transfer-Encoding": "chunked", "Content-Encoding": "br"}
STAMPS: list[tuple[str, bytes, int]] = [  # query, time in a line, seconds
    ("", b"%d" % TS, TS),
    ("", b"%d000000t" % TS, TS),
    *((f"precision={unit}", b"%d000000000" % TS, TS) for unit in ("ns", "n", "nanosecond")),
    *((f"precision={u}", b"%d000000" % TS, TS) for u in ("u", "us", "%C2%B5", "microsecond")),
    *((f"precision={unit}", b"%d000" % TS, TS) for unit in ("ms", "millisecond", "auto")),
    ("precision=second", b"%d" % TS, TS),
    ("precision=m", b"%d" % (TS // 60), TS // 60 * 60),
    ("precision=h", b"%d" % (TS // 3600), TS // 3600 * 3600),
    ("precision=s", b"%d000000000n" % TS, TS),  # as QuestDB's client writes it
    ("precision=ns", b"%d000m" % TS, TS),
]


def write(body: bytes, target: str = "/write", **more: Any) -> bytes:
    """Return a post of lines."""
    return request(target, body, **more)


ANSWERS = [
    *(
        Row(
            write(LINE_A, f"{path}?{IGNORED}", headers={"Content-Type": "image/png"}),
            204,
            kept=KEPT,
            headers={"content-length": None, "content-type": None},
        )
        for path in PATHS
    ),
    Row(write(LINE_A) * 2 + head("GET", "/ping"), 204, kept=KEPT * 2, then=(204, 204)),
    *(Row(write(body), 204, kept=0) for body in (b"", b"\n", b"# nothing")),
    Row(
        write(b'm,host=h text="only"'),
        204,
        kept=0,
        counts={("line_fields", "text_ignored"): 1},
    ),
    Row(
        write(b"m,host=h a=9007199254740993i,b=1i"),
        204,
        kept=2,
        counts={("line_fields", "integer_rounded"): 1},
    ),
    Row(write(LINE_A, packed=True), 204, kept=KEPT),
    Row(write(b"x", headers={"Content-Encoding": "br"}), 415),
    *(
        Row(
            write(b"m,host=h a=1 " + stamp, f"/write?{query}"),
            204,
            kept=[(ts * 10**6, "h", "m.a", 1.0)],
        )
        for query, stamp, ts in STAMPS
    ),
]
NONE_KEPT = [  # nothing of such a post is kept, so its sender must hear of it
    *(
        Row(write(body), 400, "all_invalid", says, counts={("posts_refused", "all_invalid"): 1})
        for body, says in (
            (b"m,host=h a=nan", "line 1: nan is not a finite number"),
            (b'm,host=h t="x"\nm,host=h a=1 5', "1 faulty line, and no reading; line 2"),
            (b"m,host=h\t a=1\nm,host= a=1\nm,host=h a=18446744073709551616u", "3 faulty lines"),
        )
    ),
    # They can be replayed with another setting; a sender with one line a post would lose each.
    Row(write(b"m a=1"), 204, kept=0, letters=[{"code": "no_device"}]),
    Row(
        write(b"m a=1\nm,host=h a=nan"),
        204,
        kept=0,
        letters=[{"code": "no_device"}, {"code": "value_out_of_range"}],
    ),
    # Values that QuestDB's client writes in binary: it keeps the rows.
    *(
        Row(write(LINE_A + b"\n" + line % kind + LINE_A), 400, "not_lines", "protocol_version=1")
        for kind in (b"\x0e", b"\x10", b"\x17")
        for line in (b'm,host=h f==%b\n =,"\xff\\ 5n\n', b"m a=1i,f==%b\0\0\0\0\0\0\xf0? 5n\n")
    ),
    *(
        Row(
            write(LINE_A + b"\nm a=1\n", f"/api/v3/write_lp?{query}"),
            400,
            "invalid_items",
            '"original_line":"m a=1"',
            headers={"content-type": "application/json"},
        )
        for query in ("strict=true", "accept_partial=false")
    ),
    Row(write(LINE_A, "/write?strict=true"), 204, kept=KEPT),
    Row(
        write(b"m,host=h v=NaN\n" * 300 + LINE_A, "/write?precision=s"),
        204,
        kept=KEPT,
        counts={("posts_refused", "not_kept"): 1},
    ),
    Row(head("GET", "/write"), 405, headers={"allow": "POST"}, says='"code":"method not allowed"'),
]
TROUBLE = [  # what can be sent again is 503, and never a 4xx
    *(
        Row(
            write(LINE_A, headers=headers),
            503,
            problem,
            '"code":"unavailable"',
            given={("inlet", "error"): error},
            counts={("rejected", problem): 1},
            headers={"retry-after": None} if headers else {},
        )
        for error, problem in ((BufferFull(3.0), "buffer_full"), (Stopping("x"), "draining"))
        # This client reads Retry-After as milliseconds.
        for headers in ({}, {"User-Agent": "influxdb-client-js/1.33.2"})
    ),
    Row(
        write(LINE_A + b'\nm,host=h a="text",b=1i'),
        503,
        given={("inlet", "put_error"): JournalBroken("disk")},
        counts={("rejected", "disk_low"): 2, ("line_fields", "text_ignored"): 0},
    ),
    Row(request("/write", None, {"Content-Length": "9"}) + b"m", 503, "body_timeout"),
    Row(
        write(LINE_A + b"\nm a=1"),
        204,
        kept=KEPT,
        given={("dead_letters", "error"): DeadLettersFull("full")},
        counts={("rejected", "not_kept"): 1, ("posts_refused", "not_kept"): 1},
    ),
    Row(
        write(LINE_A + b"\nm a=1"),
        503,
        "disk_low",
        given={("dead_letters", "error"): DeadLettersBroken("disk")},
    ),
    Row(write(LINE_A), 204, kept=KEPT),
]
PREFIX = [
    Row(
        write(
            b"m a=1 5\n" + LINE_A + b"\nm,host=h a=nan,b=2 %d\n" % (TS // 60),
            "/api/v2/write?bucket=my.db&precision=m",
        ),
        204,
        kept=[("h", r"my\.db.m.b", 2.0)],
        letters=[
            {"code": "no_device", "item": 0},
            {"code": "ts_in_future", "item": 1},
            {
                "code": "value_out_of_range",
                "item": 2,
                "original": b"m,host=h a=nan %d" % (TS // 60),
                "format": LINE,
                "source": "/api/v2/write",
                "precision": "m",
                "prefix": "my.db",
            },
        ],
    ),
]
SMALL = [  # JSON that all parsers read, and never a problem document
    Row(write(body, target), status, problem, headers={"content-type": "application/json"})
    for target, body, status, problem in (
        ("/write", b'{"a": 1}', 400, "not_lines"),
        ("/write?precision=x", LINE_A, 400, "bad_parameter"),
        ("/write?ack=x", LINE_A, 400, "bad_parameter"),
        ("/write?ack=durable", LINE_A, 400, "ack_unavailable"),
        ("/write", b"m,host=h " + b",".join([b"a=1"] * 251), 413, "too_many_readings"),
        ("/write", b"x\n" * 200, 400, "not_lines"),
        ("/write", b"m,host=h a=1 " + b" " * 3_000, 413, "body_too_large"),
    )
]
CREATED = {"results": [{"statement_id": 0}]}
QUESTIONS = [  # as InfluxDB 1.8 answers them
    row
    for at in ("", "/influx")
    for row in (
        *(
            Row(
                request(f"{at}/ping", method=method),
                204,
                headers={"x-influxdb-version": VERSION, "x-influxdb-build": "OSS"},
            )
            for method in ("GET", "HEAD")
        ),
        Row(head("GET", f"{at}/ping?verbose=true"), 200, document={"version": VERSION}),
        Row(head("GET", f"{at}/health"), 503, says='"status":"fail"'),  # this receiver is full
        Row(head("GET", f"{at}/query?q=CREATE%20DATABASE%20x"), 200, document=CREATED),
        Row(write(b"q=create+database+%22x%22", f"{at}/query?db="), 200, document=CREATED),
        Row(write(b"", f"{at}/query?q=SHOW+DATABASES"), 200, says='"values":[["x"]]'),
        Row(write(b"q=CREATE+RETENTION+POLICY+x+ON+y", f"{at}/query"), 200, document=CREATED),
        Row(write(b"q=alter+retention+policy+x+on+y", f"{at}/query"), 200, document=CREATED),
        Row(write(b"q=select+1", f"{at}/query"), 400, says='"error":'),
        Row(head("GET", f"{at}/settings"), 200, says='"line.proto.support.versions":[1]'),
        *(
            Row(request(at + path, b"", method=method), 404, says="/health says")
            for method, path in (
                ("GET", "/ready"),
                ("GET", "/api/v2/orgs"),
                ("POST", "/api/v2/setup"),
            )
        ),
        # Nobody needs a token for a question: it is small.
        Row(write(b"q=" + b"x" * 5_000, f"{at}/query"), 413, "body_too_large"),
        Row(write(b"q=" + b"x" * 5_000, f"{at}/query", packed=True), 413, "inflated_too_large"),
        Row(write(b"a=1&" * 20, f"{at}/query"), 400, "bad_parameter"),
        Row(head("GET", f"{at}/ping?" + "a=1&" * 20), 400, "bad_parameter"),
    )
]
GATEWAY = [  # each client sends its token in its own way
    Row(write(LINE_A, "/api/v2/write?b=b"), 401, "unauthorized", '"code":"unauthorized"'),
    *(
        Row(write(b"m a=1\n", target, headers=headers), 204, kept=[("gateway", "m.a", 1.0)])
        for target, headers in (
            (f"/write?db=x&u=x&p={SECRET}", {}),
            ("/api/v2/write?bucket=b", {"Authorization": f"Token {SECRET}"}),
            ("/api/v3/write_lp?db=b", {"Authorization": f"Bearer {SECRET}"}),
        )
    ),
    Row(
        write(b"m a=1\nm a=nan", f"/write?p={SECRET}"),
        204,
        kept=[("gateway", "m.a", 1.0)],
        letters=[{"device": "gateway", "sender": "garden"}],
    ),
    Row(head("GET", "/ping"), 204),
]
SCOPED = [  # a line of another device is a dead letter; a post of only such is 403
    Row(
        write(b"m,host=h a=1\nm,host=x a=2", f"/write?p={SECRET}"),
        204,
        kept=1,
        letters=[{"code": "not_allowed", "sender": "garden", "devices": ("h",)}],
    ),
    Row(write(b"m,host=x a=2", f"/write?p={SECRET}"), 403, "outside_scope"),
    Row(write(LINE_A, f"/write?p={OTHER}"), 403, "outside_scope"),
]
FAST = [  # 429 would make Telegraf drop its batch
    Row(write(b"m,host=h a=1,b=2,c=3,d=4"), 204, kept=4),
    Row(write(LINE_A), 503, "too_fast"),
]
# Posts of clients that no test here can run (Go, Java, Rust), after their sources and documents.
TAGS = r"room,device=hall\ 1\,ü,place=a\=b\ c "
NS, MS = 1_790_000_000_123_456_000, 1_790_000_000_123
BASIC = "Basic " + base64.b64encode(f"any:{SECRET}".encode()).decode()
TOKEN = f"Token {SECRET}"
GO = {"User-Agent": "influxdb-client-go/2.14.0 (linux; amd64)", "Authorization": TOKEN}
JAVA = {
    "User-Agent": "influxdb-client-java/7.2.0",
    "Authorization": TOKEN,
    "Content-Type": "text/plain; charset=utf-8",
    "Accept": "application/json",
}
OLD_JAVA = {"User-Agent": "influxdb-java/2.25", "Content-Type": "text/plain; charset=utf-8"}
OLD_JAVA_TARGET = f"/write?u=any&p={SECRET}&db=home&precision=n&consistency=one"
QUEST_GO = {
    "User-Agent": "Go-http-client/1.1",
    "Authorization": BASIC,
    "Accept-Encoding": "gzip",
}
QUEST_JAVA = {"User-Agent": "QuestDB/java/9.1.0", "Authorization": BASIC}
V2 = "/api/v2/write?bucket=home&org=org&precision="
OF_V2 = 'count=4i,on=true,temperature=21.5,text="on",uint=7'
FORMS: list[tuple[str, dict[str, str], str, bool]] = [
    (f"{V2}ns", GO, f"{OF_V2}u {NS}\n", False),
    (f"{V2}ms", GO, f"{OF_V2}u {MS}\n", True),
    ("/api/v2/write?org=org&bucket=home&precision=ms", JAVA, f"{OF_V2}u {MS}", True),
    (OLD_JAVA_TARGET, OLD_JAVA, f"{OF_V2}i {NS}\n", False),
    (
        f"/write?db=home&p={SECRET}&u=any&precision=ns",
        {"Accept": "*/*"},
        f'temperature=21.5,count=4i,on=true,uint=7u,text="on" {NS}',
        False,
    ),
    (f"{V2}ns", {"Authorization": TOKEN, "Accept": "*/*"}, f"{OF_V2}i {NS}\n", False),
    ("/write", QUEST_GO, f'temperature=2.15E+01,count=4i,on=t,text="on",uint=7i {NS}\n', False),
    (
        "/write?precision=n",
        QUEST_JAVA,
        f'temperature=21.5,count=4i,on=t,text="on",uint=7i {NS}\n',
        False,
    ),
]
VALUES = {"count": 4.0, "on": 1.0, "temperature": 21.5, "uint": 7.0}


def meant(text: str) -> list[tuple[int, str, str, float]]:
    """Return what the client means, in the order of its fields."""
    ts_us = NS // 1_000 if str(NS) in text else MS * 1_000
    fields = [each for each in text.replace("=", ",").split(",") if each in VALUES]
    return [(ts_us, "hall 1,ü", rf"room.{each},place=a\=b c", VALUES[each]) for each in fields]


WIRE = [
    Row(
        write((TAGS + text).encode(), target, headers=headers, packed=packed),
        204,
        kept=meant(text),
        counts={("line_fields", "text_ignored"): 1},
    )
    for target, headers, text, packed in FORMS
]
GROUPS = {
    "lines": Group(ANSWERS),
    "lines of which none is kept": Group(NONE_KEPT),
    "lines that come again": Group(TROUBLE, {"body_s_max": 0.05}),
    "lines with a prefix": Group(PREFIX, {"line_prefix": True}),
    "lines that are refused": Group(SMALL, {"line_rows_max": 250, "line_bytes_max": 2_048}),
    "escapes of influxdb": Group(
        [Row(write(b"m,host=a\\\\b a=1"), 204, kept=[("a\\\\b", "m.a", 1.0)])]
    ),
    "escapes of questdb": Group(
        [Row(write(b"m,host=a\\\\b a=1"), 204, kept=[("a\\b", "m.a", 1.0)])],
        {"line_escapes": "questdb"},
    ),
    "questions": Group(QUESTIONS),
    "lines of a gateway": Group(GATEWAY, tokens=[line(device="gateway")]),
    "lines of a scope": Group(
        SCOPED,
        tokens=[
            line(devices=("h",)),
            line(OTHER, name="json", sources=("readings",)),
        ],
    ),
    "lines too fast": Group(FAST, {"sender_readings_per_s_max": 1.0, "sender_burst_s": 1.0}),
    "forms of clients": Group(WIRE, tokens=[line()]),
}
