"""What the URL of the database can say: certificates of both sides, several hosts, a failover."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from pathlib import Path
from urllib.parse import quote

import pytest

from ingest.app.database import make_sink
from ingest.config.settings import Settings
from ingest.embedded.programs import clean_environment, command
from ingest.model.causes import WriteFailed
from ingest.model.ports import Stored
from ingest.sinks.postgres.connection import each_host
from tests.support.certificates import make_certificate, make_signed
from tests.support.rows import encode, readings
from tests.support.tcp_ports import free_port
from tests.system.database import Database, copy_data

DEBIAN = Path("/usr/lib/postgresql/17/bin")
ROWS = encode(readings(5))


def _settings(**more: object) -> Settings:
    return Settings(**more)  # type: ignore[arg-type]


async def _writes(url: str) -> Stored | str:
    """Write with a sink of its own; return what is stored, or the message of the failure."""
    sink = make_sink(url, _settings())
    try:
        return await sink.write(ROWS, 5, idempotent=True)
    except WriteFailed as failed:
        return failed.message
    finally:
        await sink.close()


async def _make_table(database: Database) -> None:
    await database.run(
        'create table readings (ts timestamptz not null, device_id text collate "C" not null, '
        'metric text collate "C" not null, value float8 not null, '
        "primary key (ts, device_id, metric, value)); alter table readings owner to fleet"
    )


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.exists(), reason="no server with TLS: apt-get install postgresql-17")
async def test_certificates_of_both_sides_are_checked(
    open_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verify-full takes the right certificate and name only; the server takes our certificate."""
    keys = open_tmp_path / "keys"
    keys.mkdir()
    server_cert, server_key = make_certificate(keys, "server")
    make_certificate(keys, "fleet-authority")
    client_cert, client_key = make_signed(keys, "fleet", by="fleet-authority")
    other_cert, _ = make_certificate(keys, "other")
    monkeypatch.setattr(Database, "template", None)  # it is of the embedded version, without TLS
    database = Database(open_tmp_path / "server", free_port())
    database.binaries = DEBIAN
    async with database:
        data = open_tmp_path / "server" / "data"
        for source, name in ((server_cert, "server.crt"), (server_key, "server.key")):
            shutil.copy(source, data / name)
        shutil.copy(keys / "fleet-authority.crt", data / "root.crt")
        owner = data.stat()
        for name in ("server.crt", "server.key", "root.crt"):
            shutil.chown(data / name, owner.st_uid, owner.st_gid)
            (data / name).chmod(0o600)
        await _make_table(database)
        await database.stop()
        database.settings |= {"ssl": "on", "ssl_ca_file": "root.crt"}
        rules = "hostssl all fleet 127.0.0.1/32 cert\nhost all postgres 127.0.0.1/32 trust\n"
        (data / "pg_hba.conf").write_text(rules)
        await database.start()
        at = database.url.replace(":first@", "@") + "?sslmode=verify-full&sslrootcert="
        ours = f"&sslcert={quote(str(client_cert))}&sslkey={quote(str(client_key))}"
        assert await _writes(f"{at}{server_cert}{ours}") == Stored(5, 0)
        of_localhost = at.replace("127.0.0.1", "localhost")
        assert await _writes(f"{of_localhost}{server_cert}{ours}") == Stored(0, 5)
        assert "certificate" in str(await _writes(f"{at}{other_cert}{ours}")).lower()
        assert "certificate" in str(await _writes(f"{at}{server_cert}")).lower()
        plain = f"{at.replace('verify-full', 'disable')}{server_cert}"
        assert "pg_hba.conf" in str(await _writes(plain))


def test_each_host_of_a_url_has_a_url_of_its_own() -> None:
    """User, password, port and options are those of the whole."""
    assert each_host("postgresql://me:p%40w@a:1,b:2,c/db?sslmode=require") == [
        "postgresql://me:p%40w@a:1/db?sslmode=require",
        "postgresql://me:p%40w@b:2/db?sslmode=require",
        "postgresql://me:p%40w@c/db?sslmode=require",
    ]
    for one in (
        "postgresql://me@a/db",
        "postgresql:///db?host=/run/a,/run/b",
    ):
        assert each_host(one) == [one]


@pytest.mark.slow
async def test_promoted_standby_is_found_after_a_failover(open_tmp_path: Path) -> None:
    """A host that does not answer, and a standby, are passed over; the promoted one is taken."""
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections, and says nothing
    silent_port = silent.getsockname()[1]
    first, second = free_port(), free_port()
    async with Database(open_tmp_path / "first", first) as primary:
        await _make_table(primary)
        rules = (open_tmp_path / "first" / "data" / "pg_hba.conf").read_text()
        rules += "host replication all 127.0.0.1/32 trust\n"
        (open_tmp_path / "first" / "data" / "pg_hba.conf").write_text(rules)
        await primary.run("select pg_reload_conf()")
        standby = Database(open_tmp_path / "second", second)
        home = primary._home
        assert home is not None
        copy, owner = home.data.parent / "copy", home.data.stat()
        copy.mkdir(mode=0o700)
        os.chown(copy, owner.st_uid, owner.st_gid)
        copied = await asyncio.create_subprocess_exec(
            *command(
                home.user,
                home.binaries / "pg_basebackup",
                *("-D", str(copy), "-R", "-c", "fast"),
                *("-d", f"postgresql://postgres@127.0.0.1:{first}/postgres"),
            ),
            env=clean_environment(),
        )
        assert await copied.wait() == 0
        await copy_data(copy, open_tmp_path / "second")
        standby._home = standby._prepared()
        await standby.start()
        url = f"postgresql://fleet:first@127.0.0.1:{silent_port},127.0.0.1:{second},127.0.0.1:{first}/fleet"
        sink = make_sink(url, _settings(connect_s_max=3.0))
        try:
            assert await sink.write(ROWS, 5, idempotent=False) == Stored(5, 0)
            async with asyncio.timeout(20):
                while len(await standby.run("select from readings")) < 5:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await primary.kill()
            with pytest.raises(WriteFailed):
                await sink.write(ROWS, 5, idempotent=True)
            await standby.run("select pg_promote()")
            async with asyncio.timeout(20):
                stored = None
                while stored is None:
                    try:
                        stored = await sink.write(encode(readings(7)), 7, idempotent=True)
                    except WriteFailed:
                        await asyncio.sleep(0.1)
            assert stored == Stored(2, 5)
        finally:
            await sink.close()
            await standby.kill()
            silent.close()
