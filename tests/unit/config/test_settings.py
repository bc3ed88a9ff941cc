"""The settings: defaults, bounds, the order of sources, and the errors for wrong values."""

from __future__ import annotations

import math
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from ingest.config.loading import load
from ingest.config.settings import HOLD_PROBE_S_MAX, ROW_BYTES_MAX, Settings, hold_probe_s
from ingest.config.values import checked, env_name, unit
from ingest.model.block import ROW_BYTES_MIN
from ingest.model.errors import ConfigError
from ingest.model.reading import NAME_BYTES_MAX

KNOWN = {each.name: each for each in fields(Settings)}
NUMBERS = [each for each in fields(Settings) if type(each.default) in {int, float}]


def toml(tmp_path: Path, text: str) -> Path:
    """Write a TOML file."""
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(**sources: Any) -> str:
    """Return the error of load() for wrong sources."""
    with pytest.raises(ConfigError) as caught:
        load(**{"environ": {}, **sources})
    return str(caught.value)


def test_defaults_are_those_of_the_contract() -> None:
    """The defaults are those of this table."""
    contract = {
        "body_bytes_max": 1_048_576,
        "inflated_bytes_max": 4_194_304,
        "buffer_rows_max": 200_000,
        "buffer_bytes_max": 67_108_864,
        "post_rows_max": 5_000,
        "batch_rows": 100,
        "batch_rows_max": 20_000,  # decision 479
        "batch_linger_s": 0.1,
        "writers": 2,
        "write_method": "copy",
        "retries_max": 8,
        "ack_default": "best",
        "ack_wait_s_max": 10.0,
        "drain_s_max": 20.0,
        "connections_max": 20_000,
        "body_s_max": 10.0,
        "keepalive_s_max": 75.0,
        "dlq_bytes_max": 1_073_741_824,
        "dlq_auto_replay": True,
        "listen": "127.0.0.1:8080",
        "admin_listen": "127.0.0.1:8081",
        "ts_min": "2000-01-01T00:00:00Z",
        "ts_ahead_s_max": 86_400.0,
        "schema_check_s": 10.0,
        "wait_s_max": 10.0,
    }
    settings = load(environ={}).settings
    assert {name: getattr(settings, name) for name in contract} == contract


def test_defaults_pass_their_own_bounds() -> None:
    """Each default is an allowed value."""
    for each in fields(Settings):
        assert checked(each, each.default, "test") == each.default
        assert each.metadata["why"]


def test_every_number_names_its_unit_and_has_two_bounds() -> None:
    """Every number has bounds, and the name of every float ends in a unit."""
    for each in NUMBERS:
        least, most = each.metadata["within"]
        assert 0 <= least < most < math.inf, each.name
        if isinstance(each.default, float):
            assert unit(each.name) in {"s", "days", "readings/s", "posts/s"}, each.name


@pytest.mark.parametrize("declared", NUMBERS, ids=lambda each: each.name)
def test_number_at_its_bound_is_taken_and_beyond_is_refused(declared: Field[Any]) -> None:
    """Both bounds are allowed; the next value beyond is not, and the error names the bound."""
    for bound, beyond, words in zip(
        declared.metadata["within"], (-1, 1), ("too small", "too large"), strict=True
    ):
        kind: Any = type(declared.default)
        assert checked(declared, str(kind(bound)), "test") == bound
        outside = bound + beyond if kind is int else bound + beyond * max(1e-9, bound * 1e-9)
        with pytest.raises(ConfigError, match=f"^setting {declared.name} .test.: .*{words}"):
            checked(declared, repr(kind(outside)), "test")


def test_later_origin_wins_over_earlier_one(tmp_path: Path) -> None:
    """Flags win over the environment, that over TOML, that over the default."""
    path = toml(tmp_path, "writers = 3\n")
    steps: list[tuple[dict[str, Any], int, str]] = [
        ({}, 2, "default"),
        ({"toml_path": path}, 3, str(path)),
        ({"environ": {"INGEST_WRITERS": "4"}}, 4, "INGEST_WRITERS"),
        ({"flags": {"writers": "5"}}, 5, "--writers"),
        ({"toml_path": path, "environ": {"INGEST_WRITERS": "4"}}, 4, "INGEST_WRITERS"),
        ({"toml_path": path, "flags": {"writers": "5"}}, 5, "--writers"),
        ({"environ": {"INGEST_WRITERS": "4"}, "flags": {"writers": "5"}}, 5, "--writers"),
        (
            {
                "toml_path": path,
                "environ": {"INGEST_WRITERS": "4"},
                "flags": {"writers": "5"},
            },
            5,
            "--writers",
        ),
    ]
    for sources, value, origin in steps:
        loaded = load(**{"environ": {}, **sources})
        assert loaded.settings.writers == value
        assert loaded.origins["writers"] == origin
        assert set(loaded.origins) == set(KNOWN)


def test_empty_variable_counts_as_unset_and_empty_flag_does_not() -> None:
    """An empty variable counts as not set, as in Compose files; an empty flag is a value."""
    environ = {"INGEST_WRITERS": "", "INGEST_STATE_DIR": "/x", "INGEST_BACTH_ROWS": ""}
    assert load(environ=environ).settings.writers == 2
    assert load(environ=environ, flags={"state_dir": ""}).settings.state_dir == ""
    assert "is not a whole number" in refusal(flags={"writers": ""})


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("INGEST_BACTH_ROWS", "did you mean INGEST_BATCH_ROWS?"),
        ("INGEST_batch_rows", "did you mean INGEST_BATCH_ROWS?"),
        ("INGEST_XYZZY", "which is no setting"),
        ("INGEST_", "which is no setting"),
        ("INGEST_PORTS", "which is no setting"),
    ],
)
def test_unknown_variable_is_named_with_the_nearest(variable: str, words: str) -> None:
    """A misspelt variable is an error."""
    said = refusal(environ={variable: "5"})
    assert said.startswith(f"the environment has {variable}, ")
    assert words in said


@pytest.mark.parametrize(
    "variable",
    [
        "INGEST_CONFIG",
        "INGEST_PG_BIN",
        "INGEST_TEST_DATA",
        "INGEST_SERVICE_HOST",
        "INGEST_SERVICE_PORT",
        "INGEST_SERVICE_PORT_HTTP",
        "INGEST_PORT",
        "INGEST_PORT_8080_TCP",
        "INGEST_PORT_8080_TCP_ADDR",
        "OTHER_BATCH_ROWS",
    ],
)
def test_variable_that_is_not_a_setting_of_ours_is_left_alone(variable: str) -> None:
    """The INGEST_ variables of tests, `./run` and Kubernetes are no errors."""
    assert load(environ={variable: "tcp://10.0.0.1:8080"}).settings == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("writers = 2.5", "setting writers ({path}): 2.5 is not a whole number"),
        ("writers = true", "setting writers ({path}): True is not a whole number"),
        ("writers = [2]", "setting writers ({path}): [2] is not a whole number"),
        ("writers = inf", "is not a whole number"),
        ("writers = nan", "is not a whole number"),
        ("batch_linger_s = nan", "nan is too small: at least 0 s"),
        ("batch_linger_s = inf", "inf is too large: at most 10 s"),
        ("batch_linger_s = {s = 1}", "is not a number"),
        ("batch_linger_s = 1979-05-27", "is not a number"),
        ("dlq_auto_replay = 2", "2 is neither true nor false"),
        ("dlq_auto_replay = 1.0", "1.0 is neither true nor false"),
        ("listen = 8080", "setting listen ({path}): 8080 is not text"),
        ('write_method = "upsert"', "'upsert' is none of copy, insert"),
        ("[door]\nwriters = 2", "there is no setting 'door'"),
        ("batch-rows = 2", "there is no setting 'batch-rows'; did you mean batch_rows?"),
        ("bacth_rows = 2", "{path}: there is no setting 'bacth_rows'; did you mean batch_rows?"),
        ("writers = ", "{path} is not TOML: "),
        ("writers = 2\nwriters = 3", "{path} is not TOML: "),
        ("retries_max = " + "9" * 5_000, "{path} is not TOML: "),
        ("retries_max = " + "9" * 4_000, "is too large: at most 1,000"),
        ("retries_max = 0x" + "f" * 5_000, "is too large: at most 1,000"),
        ("batch_linger_s = " + "9" * 400, "is not a number"),
    ],
)
def test_wrong_toml_is_told_by_setting_and_file(tmp_path: Path, text: str, words: str) -> None:
    """The error names the file, the setting, the value and the allowed values."""
    path = toml(tmp_path, text)
    said = refusal(toml_path=path)
    assert words.format(path=path) in said if "{path}" in words else words in said
    assert len(said) < 400


def test_unreadable_toml_is_told_with_its_path(tmp_path: Path) -> None:
    """A missing file, a folder, and bytes that are not UTF-8 each give a sentence of their own."""
    assert refusal(toml_path=tmp_path / "no.toml").endswith(
        "no.toml cannot be read: No such file or directory"
    )
    assert "Is a directory" in refusal(toml_path=tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'state_dir = "\xe9"')
    assert "is not TOML" in refusal(toml_path=tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("word", "value"),
    [("true", True), ("YES", True), ("1", True), ("on", True), ("False", False), ("0", False)],
)
def test_boolean_is_read_from_its_usual_words(word: str, value: bool) -> None:
    """true, yes, on, 1 and their opposites are read, in capitals too."""
    assert load(environ={"INGEST_SCHEMA_APPLY": word}).settings.schema_apply is value


@pytest.mark.parametrize(
    ("lower", "low", "upper", "high"),
    [
        ("post_rows_max", "6000", "batch_rows_max", "5000"),
        ("post_rows_max", "5001", "buffer_rows_max", "5000"),
        ("batch_rows", "6000", "batch_rows_max", "5000"),
        ("body_bytes_max", "8MiB", "inflated_bytes_max", "4MiB"),
        ("body_bytes_max", "1MiB", "receiver_bytes_max", "64KiB"),
        ("command_s_max", "20", "drain_s_max", "20"),
    ],
)
def test_bounds_between_settings_name_both_with_origin(
    lower: str, low: str, upper: str, high: str
) -> None:
    """If two values contradict each other, the error names both with their origins."""
    said = refusal(environ={env_name(upper): high}, flags={lower: low})
    assert said.startswith(f"setting {lower} (")
    assert f", --{lower.replace('_', '-')}) must " in said
    assert f" {upper} (" in said
    assert said.endswith(f", {env_name(upper)})")


def test_post_with_the_longest_names_fits_the_buffer() -> None:
    """A post of allowed size always fits into the buffer."""
    said = refusal(
        flags={"buffer_bytes_max": "2MiB", "inflated_bytes_max": "1MiB", "body_bytes_max": "1k"}
    )
    assert "post_rows_max (5,000 rows, default)" in said
    assert "buffer_bytes_max (2 MiB, --buffer-bytes-max)" in said
    assert "journal_bytes_max (10 MiB" in refusal(flags={"journal_bytes_max": "10MiB"})
    assert ROW_BYTES_MAX == ROW_BYTES_MIN + 2 * NAME_BYTES_MAX


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("body_s_max", "1.9"),
        ("command_s_max", "0.9"),
        ("dlq_bytes_max", "4095KiB"),
        ("wait_s_max", "0.09"),
        ("wait_s_max", "601"),
    ],
)
def test_value_with_which_the_service_would_not_work_is_refused(name: str, value: str) -> None:
    """Handshakes, each write, one large item, or the way back after an outage would fail."""
    assert name in refusal(flags={name: value})


def test_probe_of_paused_writes_comes_soon() -> None:
    """Also if the pauses may become long while the server is away."""
    assert hold_probe_s(Settings(wait_s_max=600)) == HOLD_PROBE_S_MAX
    assert hold_probe_s(Settings(wait_s_max=1)) == 0.5


def test_no_drain_at_all_is_allowed() -> None:
    """drain_s_max = 0 is allowed, although it is shorter than a write."""
    assert load(environ={}, flags={"drain_s_max": "0"}).settings.drain_s_max == 0


def test_one_address_for_both_listeners_is_refused_unless_the_port_is_free_choice() -> None:
    """Two equal addresses are an error of the settings, before anything is bound."""
    said = refusal(flags={"listen": "127.0.0.1:8081"})
    assert "listen (127.0.0.1:8081, --listen) must differ from admin_listen" in said
    both = {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"}
    assert load(environ={}, flags=both).settings.listen == "127.0.0.1:0"


def test_header_of_certificates_needs_a_proxy_and_a_name_of_its_own() -> None:
    """Only a proxy that is trusted may tell of a certificate; no header of a client does."""
    flag = {"client_certificate_header": "X-Client-Certificate"}
    assert "needs trusted_proxies" in refusal(flags=flag)
    proxies = {"trusted_proxies": "127.0.0.1"}
    assert load(environ={}, flags={**flag, **proxies}).settings.client_certificate_header
    for wrong in ("X_Client", "X-Client:", "authorization", "X-Forwarded-For", "a" * 65, "é"):
        said = refusal(flags={**proxies, "client_certificate_header": wrong})
        assert "is no name of a header" in said


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@ss:w/rd@127.0.0.1/x",
        "postgresql://u:[x@127.0.0.1/x",
        "postgresql://u:p@127.0.0.1:99999/x",
        "postgresql://u:p@127.0.0.1:notaport/x",
        "postgresql://u:%00@127.0.0.1/x",
    ],
)
def test_database_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    """A wrong database URL is an error at the start, which says how to write it."""
    with pytest.raises(ConfigError, match=r"database_url.*%2F") as caught:
        load(environ={"INGEST_DATABASE_URL": url})
    assert "ss:w" not in str(caught.value)


def test_database_url_of_several_hosts_is_taken() -> None:
    """Several hosts, each with a port, are one allowed URL."""
    url = "postgresql://u:p@one:5432,two:5433/x"
    assert load(environ={"INGEST_DATABASE_URL": url}).settings.database_url == url
