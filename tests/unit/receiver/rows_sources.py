"""Rows of mapped sources: bodies of all forms, faults, refusals, tokens, topics, other sites."""

from __future__ import annotations

from typing import Any

from ingest.model.errors import BufferFull, DeadLettersFull
from ingest.model.reading import MAPPED
from ingest.system.clock import unix_us
from tests.support.receiver import OTHER, SECRET, head, line
from tests.unit.receiver.rows import Group, Row, request

ESP = '[[source]]\nname = "esp"\ndevice = "id"\n'
GET = """
[[source]]
name = "shelly"
device = "$query.dev"
values = "$query"
numeric_strings = true
"""
MQTT = """[[source]]
name = "s"
device = "$topic.2"
values = "."
metric = "$topic.3"
value = ["v", "."]
"""
BODY = b'{"id":"esp-1","temp":21.4,"hum":40}'
KEPT = [("esp-1", "temp", 21.4), ("esp-1", "hum", 40.0)]
TTN = b"""{"end_device_ids":{"device_id":"dev1","application_ids":{"application_id":"app1"}},
"received_at":"2026-05-01T12:00:00Z",
"uplink_message":{"decoded_payload":{"temperature":21.5}}}"""
ROW = b'{"name":"m","tags":{"host":"h%d"},"fields":{"a":1},"timestamp":1777636800}'
BAD_ROW = ROW.replace(b"h%d", b"")


def post(body: bytes = BODY, target: str = "/v1/in/esp", **more: Any) -> bytes:
    """Return a post to a source."""
    return request(target, body, **more)


def kept(accepted: int, faulty: int = 0, ignored: int = 0) -> dict[str, int]:
    """Return the answer of a source."""
    return {"accepted": accepted, "faulty": faulty, "ignored": ignored}


BODIES = [
    *(
        Row(
            post(headers={"Content-Type": kind} if kind else {}),
            200,
            kept=KEPT,
            document=kept(2),
            counts={("received", ""): 2, ("accepted", ""): 2},
        )
        for kind in ("application/json", "text/plain", "image/png", "")
    ),
    Row(
        post(b'{"id":"esp-1","temp":"21.4","hum":40}'),
        200,
        says='"hints":["`temp` is a number in quotes, not stored: numeric_strings = true (1 x)"]',
        kept=KEPT[1:],
    ),
    *(
        Row(post(body, "/v1/in/esp/uplink?x=1&x=2", packed=packed), 200, kept=KEPT * times)
        for body, times, packed in (
            (b"[%b,%b]" % (BODY, BODY), 2, False),
            (BODY + b"\r\n" + BODY + b"\n", 2, False),
            (b"\xef\xbb\xbf" + BODY, 1, False),
            (BODY, 1, True),
        )
    ),
    # A webhook may be disabled after some answers that are no 2xx. HEAD is a health check.
    *(
        Row(
            post(body, "/v1/in/ttn"),
            200,
            document=kept(0, ignored=1),
            kept=0,
            letters=[],
            counts={("events_ignored", "ttn"): 1, ("received", ""): 0},
        )
        for body in (b'{"join_accept":{}}', b"")
    ),
    Row(head("HEAD", "/v1/in/ttn"), 200),
    Row(post(TTN, "/v1/in/ttn"), 200, document=kept(1)),
    # In a large document only the faulty rows are letters.
    Row(
        post(
            b'{"metrics":[%b,%b]}' % (b",".join(ROW % at for at in range(199)), BAD_ROW),
            "/v1/in/telegraf_json",
        ),
        200,
        kept=199,
        letters=[{"original": b'{"metrics":[%b]}' % BAD_ROW, "code": "no_device"}],
    ),
    Row(
        post(b'[{"x":1},' + BODY + b"]"),
        200,
        kept=KEPT,
        given={("dead_letters", "error"): DeadLettersFull()},
        counts={("rejected", "not_kept"): 1},
    ),
    Row(
        post(b'{"wifi":-46,"boot":3,"model":"x"}', "/sensors/airgradient:d8%2F1/measures"),
        200,
        kept=[("d8/1", "wifi", -46.0)],
    ),
    Row(post(b"{}", "/sensors/airgradient:a/b/measures"), 404),
    Row(
        post(b'[{"v":1},{"v":2,"at":"yesterday"},{"note":"no value"}]', "/v1/in/q?dev=d1&p=%73e"),
        200,
        says='"first_fault":{"index":1,"code":"ts_unreadable"',
        letters=[
            {
                "code": "ts_unreadable",
                "item": 1,
                "field": "time",
                "format": MAPPED,
                "source": "/v1/in/q",
            },
            {"code": "no_value", "original": b'{"note":"no value"}'},
        ],
    ),
    # Anybody may send the time of receipt.
    *(
        Row(post(headers={"X-Received-At": outside}), 400, "bad_parameter")
        for outside in ("0", "99999999999999999", f"{unix_us()},0", "now")
    ),
    Row(post(headers={"X-Received-At": str(unix_us())}), 200, kept=KEPT),
    # Bytes of the head that are not UTF-8 are replaced.
    *(
        Row(
            post(b'{"t":1}', f"/v1/in/{name}/a%ff", headers={"X-Sensor": "a\xff"}),
            200,
            kept=[("a\ufffd", "t", 1.0)],
        )
        for name in ("header", "path")
    ),
]
BODIES_OF = (
    ESP
    + '[[source]]\nname = "q"\ndevice = "$query.dev"\ntime = "at"\n'
    + '[[source]]\nname = "header"\ndevice = "$header.x-sensor"\n'
    + '[[source]]\nname = "path"\ndevice = "$path.rest"\n'
    + "".join(f'[[source]]\npreset = "{it}"\n' for it in ("ttn", "telegraf_json", "airgradient"))
)
UNREADABLE = [
    Row(post(body, packed=packed), status, code, says, counts={("posts_refused", code): 1})
    for body, packed, status, code, says in (
        (b"{", False, 400, "not_json", ""),
        (b'{"a":"\\ud800"}', False, 400, "not_json", ""),
        (b"[" * 2_000 + b"]" * 2_000, False, 400, "not_json", ""),
        (b"\x1f\x8b\xff", False, 400, "not_json", "header Content-Encoding: gzip missing"),
        (b'{"a":"%b"}' % (b"x" * 1_200_000), False, 413, "body_too_large", ""),
        (b'{"%b":1}' % (b"x" * 1_200_000), True, 413, "item_too_large", ""),
        (b"[%b1]" % (b"[]," * 100_000), False, 422, "invalid_items", ""),
        (
            b'{"a":[%b1]}' % (b"[]," * 100_000),
            False,
            413,
            "too_many_readings",
            "at most 20000 lists",
        ),
        (b"a=1&" * 2_000, False, 413, "too_many_readings", ""),
    )
]
AGAIN = [  # what can be sent again is 503: most of these clients drop what gets a 4xx
    Row(post(), 503, "buffer_full", given={("inlet", "error"): BufferFull(3.0)}),
    Row(post(), 503, "busy"),  # too fast
    Row(post(), 503, "starting", given={("admission", "code"): "starting"}),
    Row(request("/v1/in/esp", None, {"Content-Length": "9"}) + b"{", 503),
]
LATE = [Row(request("/v1/in/esp", None, {"Content-Length": "9"}) + b"{", 503, "busy")]
GETS = [  # where the query is data, `p` is no token: it may be a pressure
    Row(
        request("/v1/in/shelly?dev=ht1&t=21.5&p=1013&u=x", method="GET", host="localhost"),
        200,
        document=kept(2),
        kept=[("ht1", "t", 21.5), ("ht1", "p", 1013.0)],
        headers={"cache-control": "no-store"},
    ),
    Row(head("GET", "/v1/in/esp"), 405),
    Row(head("GET", "/v1/in/esp-2"), 404, says="did you mean /v1/in/esp? There are also"),
    *(
        Row(request("/v1/in/shelly?dev=a&t=1", None, headers, method="GET", host=host), status)
        for host, headers, status in (
            ("127.0.0.1", {}, 200),
            ("evil.example", {}, 421),
            ("localhost", {"Origin": "http://evil.example"}, 403),
            ("localhost", {"Referer": "http://evil.example/page"}, 403),
            ("localhost", {"Sec-Fetch-Site": "cross-site"}, 403),
            ("localhost", {"Referer": "http://localhost/page"}, 200),
        )
    ),
]
BOILER = f"/api/v1/{SECRET}"
IN_THE_PATH = [  # ThingsBoard's devices send their token nowhere else
    Row(post(b'{"a":1}', f"{BOILER}/attributes"), 200),
    Row(
        post(b'{"ts":1777636800000,"values":{"t":21.5,"n":"12"}}', f"{BOILER}/telemetry"),
        200,
        kept=[(1777636800000000, "boiler", "t", 21.5), (1777636800000000, "boiler", "n", 12.0)],
        counts={("requests", ("/api/v1/{token}/telemetry", 200)): 1},
    ),
    Row(
        post(b'{"t":1}', f"/api/v1/{OTHER}/telemetry"),
        401,
        "unauthorized",
        headers={"www-authenticate": "Bearer"},
    ),
    Row(post(headers={"X-API-Key": SECRET}), 403, "outside_scope"),
    Row(
        post(b'{"t":"warm"}', f"{BOILER}/telemetry"),
        200,
        letters=[{"sender": "garden", "devices": ("boiler",)}],
    ),
]
SENT = {"Authorization": f"Bearer {SECRET}"}
SCOPED = [
    Row(
        post(b'[%b,{"id":"other","t":1}]' % BODY, headers=SENT),
        200,
        kept=KEPT,
        letters=[{"code": "not_allowed"}],
    ),
    Row(post(b'{"id":"other","t":1}', headers=SENT), 403, "outside_scope"),
]
TWO_TIMES = "1790000000000001,1790000000000002"
TOPICS = [  # of messages: their topic and times stand in headers
    Row(
        post(
            b'[21.5,{"v":22},{"x":"y"}]',
            "/v1/in/s",
            headers={"X-Topic": "a/k%C3%BC%2Cche/t", "X-Received-At": TWO_TIMES},
        ),
        200,
        kept=[(1790000000000001, "kü,che", "t", 21.5), (1790000000000002, "kü,che", "t", 22.0)],
        letters=[{"received_us": 1790000000000002}],
    ),
    # A metric that is no UTF-8 could not be named in the answer.
    *(
        Row(post(body, "/v1/in/s", headers={"X-Topic": "a/h/\xff"}), status, says=says)
        for body, status, says in (
            (b"[%b1]" % (b"1," * 300), 422, '"code":"name_control_character"'),
            (b"1", 200, '"field":"?"}}'),
        )
    ),
]
HALL = [  # the token's device is that of the topic, whoever writes the header
    Row(
        post(b"1", "/v1/in/s", headers={"Authorization": f"Bearer {secret}", "X-Topic": topic}),
        status,
        kept=[("hall", "t", 1.0)] if status == 200 else 0,
    )
    for secret, topic, status in (
        (SECRET, "a/hall/t", 200),
        (SECRET, "a/cellar/t", 403),
        (OTHER, "a/hall/t", 403),
    )
]
THINGSBOARD = '[[source]]\npreset = "thingsboard"\n'
GROUPS = {
    "sources": Group(BODIES, sources=BODIES_OF),
    "sources that cannot read": Group(UNREADABLE, sources=ESP),
    "sources that get it again": Group(
        AGAIN,
        {"body_s_max": 0.1, "sender_posts_per_s_max": 0.1, "sender_burst_s": 10},
        sources=ESP,
    ),
    "sources that wait": Group(LATE, {"body_s_max": 0.1}, sources=ESP),
    "sources with GET": Group(GETS, {"access": "auto", "listen": "127.0.0.1:0"}, sources=GET + ESP),
    "sources with a token in the path": Group(
        IN_THE_PATH,
        {"access": "token"},
        [line(device="boiler", sources=("thingsboard",))],
        THINGSBOARD + ESP,
    ),
    "sources with a scope": Group(SCOPED, {"access": "token"}, [line(devices=("esp-*",))], ESP),
    "sources with topics": Group(TOPICS, sources=MQTT),
    "sources with tokens and topics": Group(
        HALL,
        {"access": "token"},
        [line(devices=("hall",)), line(OTHER, "other", sources=("t",))],
        MQTT,
    ),
}
