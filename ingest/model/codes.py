"""Every code that a client can get: problems of a post, and errors of one item.

`python -m tests.printing.documents` prints the tables of docs/ from it. A test compares them.
"""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """The constant part of a problem document: HTTP status, title, what the client should do."""

    status: int
    title: str
    client_should: str


PROBLEMS: dict[str, Problem] = {
    "bad_request": Problem(400, "The request is not valid HTTP", "fix the request"),
    "needs_tls": Problem(400, "This port speaks TLS only", "use https://"),
    "not_json": Problem(400, "The body is not JSON", "fix the body"),
    "not_msgpack": Problem(400, "The body is not MessagePack", "fix the body"),
    "not_senml": Problem(400, "The body is not a SenML pack", "fix the body"),
    "not_lines": Problem(400, "The body is not line protocol", "fix the body"),
    "bad_encoding": Problem(
        400, "The body does not match its content encoding", "compress the body again"
    ),
    "unknown_parameter": Problem(400, "Unknown query parameter", "remove the parameter"),
    "bad_parameter": Problem(
        400, "Wrong value of a query parameter or header", "use a listed value"
    ),
    "ack_unavailable": Problem(
        400, "This acknowledgement is not available", "ask for a weaker one"
    ),
    "unauthorized": Problem(401, "The token is missing or wrong", "send the token"),
    "forbidden": Problem(
        403, "The request does not come from the service's own page", "load the page again"
    ),
    "foreign_site": Problem(
        403, "A page of another site has sent the request", "send it from a program"
    ),
    "outside_scope": Problem(
        403, "The token may not send this", "send only what the token is for, or ask for another"
    ),
    "not_found": Problem(404, "No such page", "post to /v1/readings"),
    "method_not_allowed": Problem(405, "Method not allowed", "use POST"),
    "body_timeout": Problem(408, "The body did not arrive in time", "send it again"),
    "body_too_large": Problem(413, "The body is too large", "split the post"),
    "inflated_too_large": Problem(413, "The decompressed body is too large", "split the post"),
    "item_too_large": Problem(413, "An item of the post is too large", "split the item"),
    "too_many_readings": Problem(
        413, "Too many readings in one post", "split the post, or its item"
    ),
    "unsupported_media_type": Problem(
        415, "Unsupported media type", "send application/json, or another known type"
    ),
    "unsupported_encoding": Problem(
        415, "Unsupported content encoding", "send gzip or zstd, or no encoding"
    ),
    "wrong_host": Problem(421, "The host name is not a name of the loopback", "use localhost"),
    "empty": Problem(422, "There are no readings in the post", "send at least one"),
    "all_invalid": Problem(422, "Every item is invalid", "fix the items"),
    "invalid_items": Problem(
        422, "Some items are invalid, and strict=true; or too many are", "fix the items"
    ),
    "dead_letters_full": Problem(
        422, "Some items are invalid, and there is no space to keep them", "post the other items"
    ),
    "too_fast": Problem(
        429, "The sender has sent more than it may", "send it again after Retry-After"
    ),
    "too_many_connections": Problem(
        429, "The sender uses too many connections", "close some, and send it again later"
    ),
    "headers_too_large": Problem(431, "The request headers are too large", "send fewer headers"),
    "internal": Problem(500, "A fault of the service", "send it again"),
    "buffer_full": Problem(
        503, "There is no space at the moment", "send it again after Retry-After"
    ),
    "starting": Problem(503, "The service is starting", "send it again after Retry-After"),
    "draining": Problem(503, "The service is stopping", "send it again after Retry-After"),
    "disk_low": Problem(
        503,
        "The disk of the service is nearly full, or cannot be written",
        "send it again after Retry-After",
    ),
    "broker_away": Problem(
        503,
        "The broker cannot take readings now",
        "send it again after Retry-After",
    ),
    "outcome_unknown": Problem(
        503,
        "It is not known yet whether the post was stored",
        "send it again after Retry-After; readings with `ts` are stored only once",
    ),
    "busy": Problem(503, "There are too many requests at once", "send it again after Retry-After"),
    "too_slow": Problem(
        503, "The question takes the database too long", "ask for less, or make the index"
    ),
    "database_away": Problem(
        503, "The database does not answer", "send it again after Retry-After"
    ),
    "database_on_hold": Problem(
        503,
        "Writes are paused until an operator fixes the cause",
        "send it again after Retry-After; readings with `ts` are stored only once",
    ),
}

NO_PARTITION = "no_partition"
TS_TOO_OLD = "ts_too_old"
NOT_ALLOWED = "not_allowed"
NO_DEVICE = "no_device"
ITEM_CODES: dict[str, str] = {
    "item_unreadable": "the item is not JSON, or not MessagePack with text as names",
    "not_an_object": "the item is not a JSON object",
    "missing_field": "a required field is missing",
    "unknown_field": "readings have no such field (`?unknown=ignore` accepts it)",
    "repeated_field": "a name appears twice in one object, or a tag in one line",
    "both_shapes": "the item has `values`, and also `metric` or `value`, or has two values (SenML)",
    "values_empty": "`values` has no entry",
    "wrong_type": "a field has the wrong type",
    "name_empty": "a name is empty",
    "name_too_long": "a name has more than 256 characters or 512 bytes",
    "name_control_character": "a name contains a control character (NUL, line feed, ..)",
    "value_out_of_range": "the number does not fit into a float64, or is NaN",
    "value_not_exact": "the value is an integer that float64 cannot hold (setting `value_inexact`)",
    "ts_unreadable": "`ts` is neither RFC 3339 nor a number",
    "ts_without_offset": "`ts` is an RFC 3339 time without `Z` or an offset",
    TS_TOO_OLD: "`ts` is before the oldest allowed time (`ts_min`; without an archive also a "
    "confirmed `keep_hot`)",
    "ts_in_future": "`ts` is later than now plus `ts_ahead_s_max`",
    "line_unreadable": "the line is not line protocol",
    NO_DEVICE: "nothing names a device: no tag of the line, no name of SenML, "
    "or no place of the mapping",
    "no_value": "the document has no number where the mapping looks for values",
    "document_unreadable": "the document is not JSON",
    NOT_ALLOWED: "the token may not speak for this device",
    "refused_by_database": "the database refused this row (`sqlstate` says why)",
    NO_PARTITION: "the table has no partition for the time of this row",
}
