"""Every code a client can meet, once: problems of a post, and errors of one item.

The tables of docs/ are printed from here (`python -m ingest.cli_docs`), and a test compares.
"""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """A problem document's constant part: HTTP status, title, what the client should do."""

    status: int
    title: str
    client_should: str


PROBLEMS: dict[str, Problem] = {
    "bad_request": Problem(400, "Not valid HTTP", "fix the request"),
    "not_json": Problem(400, "The body is not JSON", "fix the body"),
    "bad_encoding": Problem(400, "The body is not what its encoding says", "send it whole"),
    "unknown_parameter": Problem(400, "Unknown query parameter", "remove the parameter"),
    "bad_parameter": Problem(400, "Bad value of a query parameter", "use a listed value"),
    "ack_unavailable": Problem(400, "This acknowledgement is not available", "ask for less"),
    "unauthorized": Problem(401, "Token missing or wrong", "send the token"),
    "forbidden": Problem(403, "Not from the service's own page", "load the page again"),
    "not_found": Problem(404, "No such page", "post to /v1/readings"),
    "method_not_allowed": Problem(405, "Method not allowed", "use POST"),
    "body_timeout": Problem(408, "The body did not arrive in time", "send it again, faster"),
    "body_too_large": Problem(413, "The body is too large", "split the post"),
    "inflated_too_large": Problem(413, "The inflated body is too large", "split the post"),
    "too_many_readings": Problem(413, "Too many readings in one post", "split the post"),
    "unsupported_media_type": Problem(415, "Unsupported media type", "send application/json"),
    "unsupported_encoding": Problem(415, "Unsupported content encoding", "send gzip or nothing"),
    "wrong_host": Problem(421, "Not a name of this port", "use localhost"),
    "empty": Problem(422, "No readings in the post", "send at least one"),
    "all_invalid": Problem(422, "Every item is invalid", "fix the items"),
    "invalid_items": Problem(422, "Some items are invalid, and strict was asked", "fix them"),
    "dead_letters_full": Problem(
        422, "Some items are invalid, and there is no room to keep them", "post the rest"
    ),
    "headers_too_large": Problem(431, "The request's head is too large", "send fewer headers"),
    "internal": Problem(500, "A fault of the service", "send it again"),
    "buffer_full": Problem(503, "No room at the moment", "send it again after Retry-After"),
    "starting": Problem(503, "The service is starting", "send it again after Retry-After"),
    "draining": Problem(503, "The service is stopping", "send it again after Retry-After"),
    "disk_low": Problem(503, "The service's disk is nearly full", "send it again later"),
    "outcome_unknown": Problem(
        503,
        "Not known yet whether it was stored",
        "send it again: with `ts`, stored once all the same",
    ),
    "busy": Problem(503, "Too many at once", "ask again after Retry-After"),
    "database_away": Problem(503, "The database does not answer", "ask again later"),
    "database_on_hold": Problem(
        503, "The database refuses the table's readings as a whole", "send it again later"
    ),
}

ITEM_CODES: dict[str, str] = {
    "not_an_object": "the item is not a JSON object",
    "missing_field": "a required field is missing",
    "unknown_field": "a field that readings do not have (`?unknown=ignore` accepts it)",
    "repeated_field": "a name appears twice in one object",
    "both_shapes": "`values` together with `metric` or `value`",
    "values_empty": "`values` has no entry",
    "wrong_type": "a field has a JSON type that it cannot have",
    "name_empty": "a name is empty",
    "name_too_long": "a name has more than 128 characters or 256 bytes",
    "name_control_character": "a name holds a control character (NUL, line feed, ..)",
    "value_out_of_range": "the number does not fit into a float64",
    "ts_unreadable": "not RFC 3339 and not a number",
    "ts_without_offset": "an RFC 3339 time without `Z` or an offset",
    "ts_too_old": "before the window's start (setting `ts_min`)",
    "ts_in_future": "later than now and `ts_ahead_s_max`",
    "refused_by_database": "the database refused this row (`sqlstate` says why)",
}
