from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib

import pytest

from taskforged.config import SETTINGS


def _mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_makes_a_private_home(empty):
    told = empty("init")
    assert told.count("made") == 4
    assert "taskforgectl up" in told
    assert _mode(empty.home) == 0o700
    for name in ("config.toml", "master.key", "token"):
        assert _mode(empty.home / name) == 0o600, name
    assert len(base64.b64decode((empty.home / "master.key").read_text(), validate=False)) == 32
    assert re.fullmatch(r"tfk_[a-z2-7]{12}_[A-Za-z0-9]{43}\n", (empty.home / "token").read_text())


def test_init_is_private_under_any_umask(empty):
    code = "import os, sys; os.umask(0); sys.argv = ['taskforgectl', 'init']; from taskforgectl.__main__ import main; main()"
    subprocess.run([sys.executable, "-c", code], env=empty.environment(), check=True, capture_output=True, timeout=60)
    assert _mode(empty.home) == 0o700
    assert {_mode(path) for path in empty.home.iterdir()} == {0o600}


def test_init_again_leaves_everything_alone(empty):
    empty("init")
    before = {path.name: path.read_bytes() for path in empty.home.iterdir()}
    (empty.home / "token").unlink()
    report = empty.json("init")
    assert [os.path.basename(path) for path in report["made"]] == ["token"]
    assert len(report["left_alone"]) == 3
    after = {path.name: path.read_bytes() for path in empty.home.iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {"token"}


def test_init_refuses_an_open_home(empty):
    empty.home.mkdir(mode=0o755)
    empty.home.chmod(0o755)
    assert "chmod 700" in empty.error("init", code=1)
    empty.home.chmod(0o700)


def test_the_configuration_shows_the_daemons_defaults(empty):
    empty("init")
    text = (empty.home / "config.toml").read_text()
    assert tomllib.loads(text) == {one.section: {} for one in SETTINGS}
    shown = tomllib.loads(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    found = {(section, key): value for section, table in shown.items() for key, value in table.items()}
    assert found == {(one.section, one.key): one.default for one in SETTINGS}


def test_up_status_down(empty):
    empty("init")
    token = (empty.home / "token").read_text()
    info = empty.json("up")
    try:
        assert info["state"] == "ready"
        assert _mode(empty.home / "taskforged.log") == 0o600
        assert (empty.home / "token").read_text() == token
        status = empty.json("status")
        assert status["pid"] == info["pid"]
        assert status["home"] == str(empty.home)
        assert status["grpc"][0] == f"unix:{empty.home}/taskforged.sock"
        assert status["http"].startswith("http://127.0.0.1:")
        assert os.getsid(info["pid"]) == info["pid"]
        assert "already running" in empty("up")
        assert empty.json("up")["pid"] == info["pid"]
        assert empty("-o", "name", "status") == "ready\n"
        assert "state: ready" in empty("status", "--output", "yaml")
        assert empty.json("version")["daemon"] == info["version"]
        assert empty.json("stats")["pool_size"] == 64
    finally:
        told = empty("down")
    assert told == f"stopped (pid {info['pid']})\n"
    assert "not running" in empty("down")
    absent = empty.json("status", code=5)
    assert absent["state"] == "stopped"
    assert absent.keys() == info.keys()
    assert (absent["pid"], absent["grpc"], absent["home"]) == (None, [], str(empty.home))


def test_up_without_init(empty):
    assert empty.json("up")["state"] == "ready"
    assert _mode(empty.home) == 0o700


def test_up_shows_why_the_daemon_does_not_start(empty):
    empty("init")
    (empty.home / "config.toml").write_text("[grpc]\nlissten = 1\n")
    told = empty.error("up", code=1)
    assert "did you mean [grpc] listen?" in told
    assert "hint:" in told


def test_up_says_why_in_words_and_not_in_the_logs_json(empty):
    empty("init")
    empty.home.chmod(0o755)
    told = empty.error("up", code=1)
    assert f"close it with `chmod 700 {empty.home}`" in told
    assert "{" not in told


def test_a_restart_with_faults_in_the_settings_leaves_the_daemon_running(empty):
    pid = empty.json("up")["pid"]
    config = empty.home / "config.toml"
    config.write_text("[egress]\nprivat = false\n")
    config.chmod(0o600)
    told = empty.error("restart", code=1)
    assert "did you mean [egress] private?" in told
    assert f"mend {config}" in told
    assert empty.json("status")["pid"] == pid
    config.write_text("[egress]\nprivate = false\n")
    assert empty.json("restart")["pid"] != pid


def test_a_copy_of_a_home_is_not_the_home(empty, tmp_path):
    empty("up")
    copy = tmp_path / "copy"
    shutil.copytree(empty.home, copy, ignore=shutil.ignore_patterns("*.sock"))
    copy.chmod(0o700)
    other = type(empty)(copy)
    assert other.json("status", code=5)["state"] == "stopped"
    assert f"is not running on {copy}" in other.error("run", "list", code=5)
    alias = tmp_path / "alias"
    alias.symlink_to(empty.home)
    assert type(empty)(alias).json("status")["state"] == "ready", "the same folder under another name"


def test_hints_name_the_home_that_was_given(empty, tmp_path):
    home = str(tmp_path / "second home")
    assert f"Next: taskforgectl --home '{home}' up" in empty("--home", home, "init")
    assert f"start it with `taskforgectl --home '{home}' up`" in empty.error("--home", home, "run", "list", code=5)
    remedies = [one["remedy"] for one in empty.json("--home", home, "doctor")["findings"]]
    assert f"start it: `taskforgectl --home '{home}' up`" in remedies
    assert "Next: taskforgectl up" in empty("init"), "a variable goes without saying"


def test_no_daemon_is_5_with_a_hint(empty):
    for arguments in (["run", "list"], ["workflow", "list"], ["stats"], ["run", "watch", "run_x"]):
        assert "hint: start it with `taskforgectl up`" in empty.error(*arguments, code=5)


def test_a_killed_daemon_is_stopped_and_can_be_started_again(empty):
    pid = empty.json("up")["pid"]
    os.kill(pid, signal.SIGKILL)
    _wait_gone(pid)
    assert (empty.home / "taskforged.json").exists()
    assert empty.json("status", code=5)["state"] == "stopped"
    assert "not running" in empty("down")
    assert "taskforgectl up" in empty.error("workflow", "list", code=5)
    again = empty.json("up")
    assert again["pid"] != pid
    assert again["boot_epoch"] == 2


def test_down_never_signals_a_stranger(empty):
    """A run file that was left over names a process that has nothing to do with it."""
    empty("init")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        (empty.home / "taskforged.lock").write_text(f"{stranger.pid}\n")
        content = {"pid": stranger.pid, "version": "0", "grpc": ["127.0.0.1:1"], "http": "", "boot_epoch": 1}
        (empty.home / "taskforged.json").write_text(json.dumps(content))
        assert "not running" in empty("down")
        assert stranger.poll() is None
        stranger.communicate(b"\n")
        assert stranger.returncode == 0


def test_a_damaged_run_file_is_told(empty):
    empty("init")
    (empty.home / "taskforged.json").write_text("{")
    assert "is damaged" in empty.error("run", "list", code=1)


@pytest.mark.parametrize("verb", ["up", "down"])
def test_up_and_down_refuse_an_address(empty, verb):
    empty.error(verb, "--address", "127.0.0.1:1", code=2)


def _wait_gone(pid: int) -> None:
    """Wait until a process that is not our child has ended; a zombie of nobody has, too."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.01)
    raise AssertionError(f"{pid} is still there")
