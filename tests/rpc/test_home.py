"""The home: what the daemon makes, what it refuses, and who can read it."""

import asyncio
import stat

import pytest
from harness import Daemon, DaemonError


def modes(home):
    return {file.name: stat.S_IMODE(file.lstat().st_mode) for file in home.iterdir()}


async def test_everything_in_a_home_is_private(daemon):
    assert stat.S_IMODE(daemon.home.stat().st_mode) == 0o700
    found = modes(daemon.home)
    assert {"taskforge.db", "token", "master.key", "taskforged.lock", "taskforged.json", "taskforged.sock"} <= set(
        found
    )
    assert {name: oct(mode) for name, mode in found.items() if mode & 0o077} == {}


async def test_a_clean_stop_leaves_no_run_file_and_no_socket(daemon):
    assert daemon.terminate() == 0
    assert {"taskforged.json", "taskforged.sock", "taskforge.db-wal"}.isdisjoint(modes(daemon.home))


@pytest.fixture
async def stopped(daemon):
    assert await asyncio.to_thread(daemon.terminate) == 0
    return daemon


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda home: home.chmod(0o755), "chmod 700"),
        (lambda home: (home / "master.key").unlink(), "master.key is missing"),
        (lambda home: (home / "master.key").write_text("short"), "does not hold 32 bytes"),
        (lambda home: (home / "token").write_text("nonsense"), "does not hold a token"),
        (lambda home: (home / "config.toml").write_text("[grpc]\nlisten = 1"), "HOST:PORT"),
    ],
)
async def test_a_spoiled_home_is_refused_with_a_clear_message(stopped, spoil, message):
    spoil(stopped.home)
    stopped.env.pop("TASKFORGE_GRPC_LISTEN", None)
    if "HOST" in message:
        stopped.env["TASKFORGE_HTTP_LISTEN"] = "nonsense"
    with pytest.raises(DaemonError, match="ended with"):
        await asyncio.to_thread(stopped.start)
    log = stopped.log_text()
    assert message in log
    assert "Traceback" not in log


async def test_a_home_below_a_long_path_is_served_by_tcp(tmp_path):
    home = tmp_path / ("long" * 25) / "home"
    home.parent.mkdir()
    daemon = Daemon(home)
    try:
        await asyncio.to_thread(daemon.start)
        assert [address for address in daemon.info["grpc"] if address.startswith("unix:")] == []
    finally:
        await daemon.aclose()
