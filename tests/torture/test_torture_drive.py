"""Who drives a torture comes to an end, whatever the daemon does; and what no client may swallow."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from taskforgectl.errors import CliError
from taskforgectl.torture import drive, looks, session, wire
from taskforgectl.torture.drive import Files, _Driver
from taskforgectl.torture.ledger import Ledger
from taskforgectl.torture.load import Load
from taskforgectl.torture.outside import Sender
from taskforgectl.torture.plan import Plan, Round
from taskforgectl.torture.process import DaemonError
from taskforgectl.torture.session import Torture, torture
from taskforgectl.torture.wire import RefusedError, Wire

PLAN = Plan(Round(1, 3))


def violations(ledger: Ledger, path: Path) -> list[str]:
    ledger.flush()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [f"{one['check']}: {one['message']}" for one in entries if one["what"] == "violation"]


# --- a daemon that is gone, hangs, or never comes to rest ------------------------------------------------------------


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[_Driver]:
    made = _Driver(PLAN, Files(tmp_path), rate=1.0, program=[], stop=asyncio.Event(), show=lambda _: None)
    with made.ledger:
        yield made
    made.outside._file.close()


async def wait_for_an_answer(driver: _Driver, **bounds: float) -> str:
    """Wait for what never comes; answers why it was given up."""
    async with asyncio.timeout(20):
        with pytest.raises(DaemonError) as given_up:
            await driver.while_it_lives(driver.looker.after_restart(), **bounds)
    return given_up.value.message


async def test_a_daemon_that_ends_by_itself_is_not_waited_for(driver: _Driver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver.subject, "ended", lambda: -11)
    assert await wait_for_an_answer(driver) == "the daemon has ended by itself with -11"


async def test_a_daemon_that_hangs_is_not_waited_for(driver: _Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (drive, looks):
        monkeypatch.setattr(module, "STUCK_S", 0.01)
    assert await wait_for_an_answer(driver) == "nothing went on for 0.01 s"
    assert violations(driver.ledger, Files(tmp_path).ledger) == ["stuck: nothing went on for 0.01 s"]


async def test_what_goes_on_for_ever_is_given_up(driver: _Driver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(looks, "STUCK_S", 1.0)
    assert await wait_for_an_answer(driver, limit_s=0.01) == "0.01 s were not enough to come to rest"


async def test_what_is_broken_meanwhile_is_told(driver: _Driver):
    async def broken() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await driver.while_it_lives(broken())


# --- clients ---------------------------------------------------------------------------------------------------------


async def test_a_limit_that_stays_reached_is_a_refusal(monkeypatch: pytest.MonkeyPatch):
    client, answers = Wire(lambda: False), iter(["UNAVAILABLE", *["RESOURCE_EXHAUSTED"] * 9])

    async def refuse(*_: Any) -> None:
        raise RefusedError(next(answers), "no room")

    monkeypatch.setattr(wire, "_FULL_S", 0.0)
    monkeypatch.setattr(client, "_send", refuse)
    client._up.set()
    async with asyncio.timeout(20):
        with pytest.raises(RefusedError, match="RESOURCE_EXHAUSTED: no room"):
            await client.insist("GetStats")


async def test_whoever_waits_goes_home_when_it_is_over(tmp_path: Path):
    nobody: Any = None
    with Ledger(tmp_path / "ledger") as ledger:
        load = Load(PLAN, nobody, nobody, ledger, 1e-6)
        waiting = asyncio.create_task(load._pace(random.Random(1), 1.0))
        await asyncio.sleep(0)
        load.is_over = True
        await asyncio.wait_for(waiting, 20)


Answer = Callable[[], web.Response]


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (lambda: web.Response(status=503, text="later"), []),
        (lambda: web.Response(status=500, text="Internal Server Error"), ["500: Internal Server Error"]),
        (lambda: web.json_response({"error": "no"}, status=401), ['401: {"error": "no"}']),
    ],
)
async def test_an_error_of_the_webhook_listener_is_no_silence(tmp_path: Path, first: Answer, said: list[str]):
    answers = [lambda: web.json_response({"event_id": "evt_1", "run_ids": ["run_1"]}, status=202), first]
    app = web.Application()

    async def answer(_: web.Request) -> web.Response:
        return answers.pop()()

    app.router.add_post("/hooks/default/things", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    path = tmp_path / "ledger"
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        with Ledger(path) as ledger:
            async with Sender(ledger, lambda: base) as sender, asyncio.timeout(20):
                assert await sender.deliver(1) == ("" if said else "evt_1")
            assert violations(ledger, path) == [f"deliveries: d-1 was refused with {one}" for one in said]
    finally:
        await runner.cleanup()


# --- no room ---------------------------------------------------------------------------------------------------------


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(session.shutil, "disk_usage", lambda _: usage._replace(free=3 << 20))
    with pytest.raises(CliError, match="has 3 MiB free, a torture needs 256"):
        torture(Torture(1, 3, str(tmp_path)), lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_evidence_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def fill(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session, "drive", fill)
    with pytest.raises(CliError, match=f"cannot be written below {tmp_path}: No space left on device"):
        torture(Torture(1, 3, str(tmp_path)), lambda _: None)
    assert list(tmp_path.iterdir()) == []
