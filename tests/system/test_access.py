"""Tokens of a real service: made, rotated under load, ended; the start beyond the loopback."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Here, ingest
from tests.support.documents import DOCUMENTS, fences
from tests.support.receiver import SECRET, in_force, line, running_receiver
from tests.system.service import Service, run_command
from tests.system.test_up import Up, restart

READING = b'{"device_id":"d1","metric":"m","ts":1750000000000,"value":1}'


async def made(here: Here, folder: Path, *words: str) -> str:
    """Make or rotate the token `fleet`; return it."""
    done = await here("token", *words, "--state-dir", folder)
    assert done.code == 0, done.stderr
    return done.stdout.split()[-1]


async def status(service: Service, token: str) -> int:
    """Post one reading on a connection of its own, so that each gateway gets some."""
    headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
    return (await service.post(READING, headers=headers)).status


async def test_tokens_are_rotated_under_load_without_a_refused_post(
    open_tmp_path: Path, at_hand: dict[str, Any], here: Here
) -> None:
    """Posts go on all the time; the old token is good until it is disabled, then no more."""
    old = await made(here, open_tmp_path, "new", "fleet")
    async with Service(open_tmp_path, buffer="memory", **at_hand) as service:
        assert any("Bearer TOKEN" in each for each in service.lines)
        assert await status(service, "iot_wrong") == 401
        using, seen, done = old, set[int](), asyncio.Event()

        async def post_all() -> None:
            while not done.is_set():
                seen.add(await status(service, using))

        posting = asyncio.create_task(post_all())
        using = await made(here, open_tmp_path, "rotate", "fleet")
        assert await status(service, old) == await status(service, using) == 202
        assert (await here("token", "new", "other", "--state-dir", open_tmp_path)).code == 0
        done.set()
        await posting
        assert seen == {202}
        assert (
            await here("token", "disable", "fleet", "--all", "--state-dir", open_tmp_path)
        ).code == 0
        assert [await status(service, each) for each in (old, using)] == [401, 401]
        told = "\n".join(service.lines) + service.output
        assert old not in told
        assert using not in told


async def test_limits_of_serve_are_not_divided_among_the_gateways_of_up(
    open_tmp_path: Path, at_hand: dict[str, Any]
) -> None:
    """One file of settings may be for both. What a quiet sender may send is that of ten seconds."""
    limits: dict[str, Any] = {"sender_posts_per_s_max": 0.2, "gateways": 2}
    async with Service(open_tmp_path, buffer="memory", **limits, **at_hand) as service:
        assert [(await service.post(READING)).status for _ in range(3)] == [202, 202, 429]


@pytest.mark.parametrize("command", ["serve", "up"])
async def test_start_beyond_the_loopback_without_tokens_says_what_to_do(
    open_tmp_path: Path, command: str
) -> None:
    """It ends before anything is served, with exit code 2."""
    listen = ("--listen", "0.0.0.0:0", "--admin-listen", "127.0.0.1:0")
    done = await ingest(command, "--state-dir", open_tmp_path, *listen)
    assert done.code == 2
    assert "token new NAME" in done.stderr
    assert "--access open" in done.stderr


async def test_commands_of_docs_tokens_md(
    open_tmp_path: Path, at_hand: dict[str, Any], here: Here
) -> None:
    """As they stand: a token, the start for the network with limits, a post, a leaked token, its
    end, rotation, limits of a token, a certificate, admins."""
    first, start, post, leaked, ended, later, limits, own, certificate, proxy, admins = (
        each.text for each in fences(DOCUMENTS["docs/use/tokens.md"]) if each.language == "sh"
    )
    words = shlex.split(first)
    assert words[:2] == ["./run", "token"]
    words_of_first = words[2:]
    token = await made(here, open_tmp_path, *words_of_first)
    assert shlex.split(start) == ["./run", "--listen", "0.0.0.0:8080"]
    for each in (own, certificate):
        await made(here, open_tmp_path, *shlex.split(each)[2:])
    flags = shlex.split(limits)[1:] + shlex.split(proxy)[1:]
    settings: dict[str, Any] = {
        name.removeprefix("--"): text for name, text in zip(flags[::2], flags[1::2], strict=True)
    }
    given = {**at_hand, "buffer": "memory", "listen": "0.0.0.0:0", **settings}
    async with Service(open_tmp_path, **given) as service:
        devices = next((each for each in service.lines if each.startswith("devices:")), "")
        assert not devices or re.search(r"http://[0-9.]+:[0-9]+/v1/readings", devices)
        assert await status(service, token) == 202
        typed = post.replace("TOKEN", token).replace("http://127.0.0.1:8080", service.url)
        shown = await asyncio.to_thread(subprocess.check_output, ["sh", "-c", typed])
        assert json.loads(shown)["accepted"] == 1
        headers = {settings["client-certificate-header"]: "CN=boiler-7,O=Example"}
        of_boiler = READING.replace(b"d1", b"boiler-7")
        for body, told in ((of_boiler, 202), (READING, 403)):
            assert (await service.post(body, headers=headers)).status == told
        for command, may_act in zip(admins.splitlines(), (401, 200), strict=True):
            words = shlex.split(command, comments=True)
            admin = await made(here, open_tmp_path, *words[2:])
            sent = {"Authorization": f"Bearer {admin}"}
            asked = [("GET", "/"), ("GET", "/senders"), ("POST", "/hold/release")]
            got = [
                (await service.request(method, service.admin_url + path, headers=sent)).status
                for method, path in asked
            ]
            assert got == [200, 200, may_act]
            assert await status(service, admin) == 403
        assert (await service.request("GET", service.admin_url + "/")).status == 401
        assert (await here("hold", "show", "--state-dir", open_tmp_path)).code == 0
        for commands in (leaked + ended, later):
            for command in commands.splitlines():
                done = await here(*shlex.split(command)[1:], "--state-dir", open_tmp_path)
                assert done.code == 0, (command, done.stderr)
                if command.endswith("--now"):
                    assert await status(service, token) == 401
                    token = done.stdout.split()[-1]
                    assert await status(service, token) == 202
            assert await status(service, token) == 401
            token = await made(here, open_tmp_path, *words_of_first)


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_each_gateway_of_up_asks_for_the_token(open_tmp_path: Path, here: Here) -> None:
    """All of them read the file, also those that come after a restart."""
    folder = open_tmp_path / "s"
    token = await made(here, folder, "new", "fleet")
    async with Up(folder, gateways=2) as service:
        for _ in range(2):
            for _ in range(8):
                assert await status(service, "iot_wrong") == 401
                assert await status(service, token) == 202
            await restart(service, 1)
        new = await made(here, folder, "rotate", "fleet")
        assert [await status(service, each) for each in (token, new) * 8] == [202] * 16
        assert (await here("token", "disable", "fleet", "--all", "--state-dir", folder)).code == 0
        assert [await status(service, each) for each in (token, new) * 8] == [401] * 16


async def test_clients_of_ours_send_the_token(tmp_path: Path) -> None:
    """`run`, `verify` and `csv` of loadgen share the option; the variable keeps it out of `ps`."""
    file = tmp_path / "a.csv"
    file.write_text("timestamp,value\n2026-01-01 00:00:00,1\n2026-01-01 00:00:01,2\n")
    async with running_receiver(in_force(line())) as receiver:
        url = ("--url", f"http://{receiver.address}")
        csv = ("csv", file, "--device", "d", "--metric", "m", *url)
        refused = await run_command("loadgen", *csv)
        assert refused.code != 0
        assert "401 unauthorized" in refused.stderr
        assert (await run_command("loadgen", *csv, env={"LOADGEN_TOKEN": SECRET})).code == 0
        load = ("run", "--posts", "5", "--rate", "100", *url, "--token", SECRET)
        done = await run_command("loadgen", *load)
        assert done.code == 0, done
        assert len(receiver.inlet.readings) == 7
        assert SECRET not in done.stdout + done.stderr
