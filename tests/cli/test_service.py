"""The daemon as a systemd service of a user: units, `init --systemd`, and verbs that go through the manager.

`systemctl`, `loginctl` and `journalctl` are stand-ins here that record what they are asked, and start and stop a real
daemon as the manager would. The units themselves are judged by the real `systemd-analyze`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.support import NAP, Ctl, finish
from harness import ROOT, Daemon

pytestmark = pytest.mark.timeout(240)
"""Many processes, one after the other."""

SERVICE, SOCKET = "taskforged.service", "taskforged.socket"
ANALYZE = shutil.which("systemd-analyze")
needs_analyze = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")

SYSTEMCTL = """\
#!{python}
import json, os, signal, subprocess, sys, time
from pathlib import Path
state = Path(os.environ["FAKE_STATE"])
words = [w for w in sys.argv[1:] if not w.startswith("--")]
with (state / "calls").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if (state / "absent").exists():
    sys.exit("Failed to connect to bus: No medium found")
home, pid = Path(os.environ["FAKE_HOME"]), state / "pid"

def running():
    try:
        stat = Path("/proc", pid.read_text() or "0", "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"

def start():
    if running():
        return
    with (state / "journal").open("ab") as log:
        process = subprocess.Popen(
            [{python!r}, "-m", "taskforged", "--home", str(home)], stdout=log, stderr=log, start_new_session=True
        )
    pid.write_text(str(process.pid))
    for _ in range(1500):
        try:
            if json.loads((home / "taskforged.json").read_text())["pid"] == process.pid:
                return
        except (FileNotFoundError, ValueError):
            pass
        if process.poll() is not None:
            sys.exit("Job for taskforged.service failed because the control process exited with error code.")
        time.sleep(0.02)

def stop():
    if running():
        os.kill(int(pid.read_text()), signal.SIGTERM)
        while running():
            time.sleep(0.02)
    pid.unlink(missing_ok=True)

verb, service = words[0], "taskforged.service" in words
if verb == "enable":
    (state / "enabled").touch()
    if "--now" in sys.argv:
        start()
elif verb == "is-enabled":
    print("enabled" if (state / "enabled").exists() else "disabled")
    sys.exit(0 if (state / "enabled").exists() else 1)
elif verb == "is-active":
    print("activating" if (state / "busy").exists() else "active" if running() else "inactive")
elif verb == "show":
    print(pid.read_text() if running() else 0)
elif verb == "start" and service:
    start()
elif verb == "stop" and service:
    stop()
elif verb == "restart" and service:
    (state / "busy").touch()
    stop()
    time.sleep(1.5)
    start()
    (state / "busy").unlink()
"""
LOGINCTL = '#!/bin/sh\n[ -e "$FAKE_STATE/linger" ] && echo yes || echo no\n'
JOURNALCTL = """\
#!/bin/sh
echo "$@" >> "$FAKE_STATE/calls"
case "$*" in *--reverse*) tac "$FAKE_STATE/journal" ;; *) cat "$FAKE_STATE/journal" ;; esac
"""


class Machine(Ctl):
    """The command line on a machine with a user manager."""

    def __init__(self, home: Path, folder: Path) -> None:
        super().__init__(home)
        self.state = folder / "state"
        self.units = folder / "config" / "systemd" / "user"
        self._bin = folder / "bin"
        for made in (self.state, self._bin):
            made.mkdir()
        for name, text in {
            "systemctl": SYSTEMCTL.format(python=sys.executable),
            "loginctl": LOGINCTL,
            "journalctl": JOURNALCTL,
        }.items():
            (self._bin / name).write_text(text)
            (self._bin / name).chmod(0o755)

    def environment(self, **extra: str) -> dict[str, str]:
        return super().environment(
            PATH=f"{self._bin}:{os.environ['PATH']}",
            FAKE_STATE=str(self.state),
            FAKE_HOME=str(self.home),
            XDG_CONFIG_HOME=str(self.units.parents[1]),
            **extra,
        )

    def calls(self) -> list[str]:
        """What the manager was asked since the last time, without questions."""
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        words = [line.replace("--user --no-pager ", "") for line in lines]
        return [one for one in words if not re.match(r"(is-|show|reset-failed)", one)]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    scratch = Daemon()
    made = Machine(scratch.home, tmp_path)
    try:
        yield made
    finally:
        made.run("down")
        scratch.close()


@pytest.fixture
def bare(machine: Machine) -> Machine:
    """Nobody answers systemctl."""
    (machine.state / "absent").touch()
    return machine


# --- init ------------------------------------------------------------------------------------------------------------


def test_init_installs_enables_and_starts(machine: Machine):
    told = machine("init", "--systemd")
    assert f"made        {machine.units / SERVICE}" in told
    assert "loginctl enable-linger" in told
    assert "log out" in told, "and why"
    assert machine.calls() == ["daemon-reload", f"enable --now {SOCKET} {SERVICE}"]
    for name in (SERVICE, SOCKET):
        assert (machine.units / name).stat().st_mode & 0o777 == 0o644
    text = (machine.units / SERVICE).read_text()
    assert f"ExecStart={Path(sys.executable).parent / 'taskforged'}\n" in text
    assert f"Environment=TASKFORGE_HOME={machine.home}\n" in text
    assert f"ReadWritePaths={machine.home}\n" in text
    status = machine.json("status")
    assert (status["state"], status["service"]) == ("ready", f"{SERVICE}: active")


def test_init_again_changes_nothing_and_says_so(machine: Machine):
    machine("init", "--systemd")
    (machine.state / "linger").touch()
    before = {path: path.stat().st_mtime_ns for path in machine.units.iterdir()}
    report = machine.json("init", "--systemd")
    assert report["made"] == []
    assert {one["change"] for one in report["service"]["units"]} == {"left alone"}
    assert report["service"]["left_to_do"] == []
    assert {path: path.stat().st_mtime_ns for path in machine.units.iterdir()} == before


def test_without_a_manager_it_says_what_to_type(bare: Machine):
    told = bare("init", "--systemd")
    for command in (
        "systemctl --user daemon-reload",
        f"systemctl --user enable --now {SOCKET} {SERVICE}",
        "loginctl enable-linger",
    ):
        assert command in told
    assert bare.calls() == []
    assert (bare.units / SOCKET).exists()
    assert bare.json("up")["service"] is None, "and the daemon runs in the background"


def test_an_old_unit_is_brought_up_to_date_and_a_changed_one_is_left_alone(machine: Machine):
    machine("init", "--systemd")
    config = (
        (machine.home / "config.toml").read_text().replace('# listen = "127.0.0.1:7421"', 'listen = "127.0.0.1:7499"')
    )
    (machine.home / "config.toml").write_text(config)
    service = machine.units / SERVICE
    service.write_text(service.read_text().replace("MemoryMax=2G", "MemoryMax=3G"))
    report = machine.json("init", "--systemd")
    assert [one["change"] for one in report["service"]["units"]] == ["left alone, changed by you", "updated"]
    assert "MemoryMax=3G" in service.read_text()
    assert "ListenStream=127.0.0.1:7499\n" in (machine.units / SOCKET).read_text()
    assert report["service"]["left_to_do"][0]["type"] == "taskforgectl restart"
    assert "systemctl --user edit" in machine("init", "--systemd")


def test_the_service_of_another_home_is_not_turned_over(machine: Machine, tmp_path: Path):
    machine("init", "--systemd")
    before = (machine.units / SERVICE).read_text()
    told = machine.error("init", "--systemd", "--home", str(tmp_path / "other"), code=6)
    assert str(machine.home) in told
    assert (machine.units / SERVICE).read_text() == before


def test_a_background_daemon_hands_over(machine: Machine):
    first = machine.json("up")["pid"]
    report = machine.json("init", "--systemd")
    assert machine.calls()[-1] == f"enable {SOCKET} {SERVICE}", "not started: the home is in use"
    assert report["service"]["left_to_do"][0]["type"] == "taskforgectl restart"
    assert machine.json("status")["pid"] == first
    info = machine.json("restart")
    assert info["pid"] == int((machine.state / "pid").read_text()) != first
    assert info["boot_epoch"] == 2


@pytest.mark.parametrize("folder", ["with space", 'quo"te', "per%cent", "dol$lar"])
def test_odd_homes_are_quoted_for_systemd(bare: Machine, tmp_path: Path, folder: str):
    home = tmp_path / folder
    bare("init", "--systemd", "--home", str(home))
    found = _served(bare)
    assert found == home
    if ANALYZE:
        _verify(bare)


def _served(machine: Machine) -> Path:
    code = "from taskforgectl.service.units import served_home; print(served_home())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=machine.environment(), capture_output=True, text=True, check=True
    )
    return Path(done.stdout.rstrip("\n"))


# --- up, down, restart, logs -----------------------------------------------------------------------------------------


def test_verbs_go_through_the_manager(machine: Machine):
    machine("init", "--systemd")
    machine.calls()
    pid = machine.json("status")["pid"]
    assert machine("down") == f"stopped (pid {pid})\n"
    assert machine.calls() == [f"stop {SOCKET} {SERVICE}"], "the socket would start it again"
    assert "not running" in machine("down")
    machine.calls()
    first = machine.json("up")
    assert machine.calls() == [f"start {SOCKET} {SERVICE}"]
    assert "already running" in machine("up")
    assert machine.calls() == []
    second = machine.json("restart")
    assert machine.calls() == [f"restart {SERVICE}", f"start {SOCKET}"]
    assert second["pid"] != first["pid"]
    assert machine.json("status", code=0)["service"] == f"{SERVICE}: active"


def test_clients_wait_while_the_service_restarts(machine: Machine):
    machine("init", "--systemd")
    machine.apply(NAP.replace("60s", "6s"))
    run_id = machine("run", "start", "nap", "-o", "name").strip()
    watching = machine.popen("run", "watch", run_id, "-o", "json")
    watching.stdout.readline()
    restarting = machine.popen("restart")
    answers = 0
    while restarting.poll() is None:
        assert "nap" in machine("workflow", "list", "-o", "name"), "no call fails meanwhile"
        answers += 1
    assert finish(restarting)[0]
    assert answers
    out, err = finish(watching)
    assert watching.returncode == 0, err
    sequences = [json.loads(line)["sequence"] for line in out.splitlines() if "sequence" in line]
    assert sequences == list(range(2, len(sequences) + 2)), "nothing is lost or repeated"
    assert machine.json("run", "show", run_id)["state"] == "SUCCEEDED"


def test_a_service_that_does_not_start_is_told_in_the_managers_words(machine: Machine):
    machine("init", "--systemd")
    machine("down")
    (machine.home / "config.toml").write_text("[nonsense]\nx = 1\n")
    told = machine.error("up", code=1)
    assert "control process exited" in told
    assert "taskforgectl logs" in told
    (machine.home / "config.toml").unlink()
    (machine.home / "taskforge.db").write_bytes(b"no database" * 100)
    done = machine.run("init", "--systemd", code=1)
    assert f"left alone  {machine.units / SERVICE}" in done.stdout, "what was done is told before what went wrong"
    assert "control process exited" in done.stderr


def test_logs_of_a_service_come_from_the_journal(machine: Machine):
    machine("init", "--systemd")
    machine.calls()
    assert "daemon.started" in machine("logs")
    assert any("--unit=taskforged.service" in call for call in machine.calls())
    (machine.state / "journal").write_text(
        '{"event": "a", "level": "info"}\nnot json \x1b[31mred\n{"event": "b\\u001b[2J", "level": "error", "x": 1}\n'
    )
    assert [one.get("event", one.get("text")) for one in machine.json("logs", "--lines", "2")] == [
        "not json \x1b[31mred",
        "b\x1b[2J",
    ]
    told = machine("logs")
    assert "\x1b" not in told
    assert "x=1" in told
    assert [one.get("event") for one in machine.json("logs", "--level", "error")] == [None, "b\x1b[2J"]
    assert '"event":"b' in machine("logs", "--follow", "-o", "json")


def test_doctor_looks_at_units_and_service(machine: Machine):
    machine("init", "--systemd")
    found = {one["check"]: one for one in machine.json("doctor")["findings"]}
    assert found["units"]["severity"] == "OK"
    assert "enable-linger" in found["service"]["remedy"]
    (machine.state / "linger").touch()
    service = machine.units / SERVICE
    service.write_text(service.read_text() + "# mine\n")
    (machine.units / SOCKET).unlink()
    (machine.state / "enabled").unlink()
    told = [
        one["message"] + one["remedy"] for one in machine.json("doctor")["findings"] if one["severity"] == "WARNING"
    ]
    for part in ("was changed after it was installed", "is missing", "does not start by itself"):
        assert any(part in one for one in told), (part, told)


def test_restart_and_logs_without_a_service(empty):
    empty("init")
    empty.error("logs", code=3)
    first = empty.json("restart")
    assert first["state"] == "ready", "restart starts it when none runs"
    second = empty.json("restart")
    assert (second["boot_epoch"], second["pid"] != first["pid"]) == (2, True)
    assert [one["event"] for one in empty.json("logs", "--lines", "3")] == [
        "daemon.draining",
        "daemon.stopped",
        "daemon.started",
    ]
    assert empty.json("logs", "--level", "critical") == []
    following = empty.popen("logs", "--follow", "--lines", "1", "-o", "json")
    try:
        assert json.loads(following.stdout.readline())["event"] == "daemon.started"
        os.rename(empty.home / "taskforged.log", empty.home / "taskforged.log.1")
        (empty.home / "taskforged.log").write_text('{"event": "in a new file", "level": "info"}\n')
        assert json.loads(following.stdout.readline())["event"] == "in a new file"
    finally:
        following.terminate()
        following.communicate()
    assert [one["event"] for one in empty.json("logs", "--lines", "2")] == ["daemon.started", "in a new file"], (
        "both files"
    )


# --- the units -------------------------------------------------------------------------------------------------------


def _verify(machine: Machine) -> None:
    units = [str(machine.units / name) for name in (SERVICE, SOCKET)]
    runtime = machine.home.parent / "r"  # short: other units of the system have sockets below it
    runtime.mkdir(mode=0o700, exist_ok=True)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    done = subprocess.run(
        [ANALYZE, "--user", "verify", *units], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "it tells unknown directives there, and succeeds all the same"


@needs_analyze
def test_systemd_finds_no_fault_in_the_units(bare: Machine):
    bare("init", "--systemd")
    _verify(bare)


@needs_analyze
def test_the_judge_would_find_a_fault(bare: Machine):
    bare("init", "--systemd")
    with (bare.units / SERVICE).open("a") as file:
        file.write("[Service]\nNoSuchDirective=yes\n")
    with pytest.raises(AssertionError, match="NoSuchDirective"):
        _verify(bare)


@needs_analyze
def test_the_exposure_is_what_the_documentation_quotes():
    page = (ROOT / "docs" / "operations.md").read_text()
    quoted = re.search(r"overall exposure level of (\d+\.\d)", page)
    assert quoted, "docs/operations.md quotes the score"
    score = round(float(quoted[1]) * 10)

    def judge(threshold: int) -> subprocess.CompletedProcess[str]:
        command = [ANALYZE, "security", "--offline=true", "--no-pager", f"--threshold={threshold}", f"./{SERVICE}"]
        return subprocess.run(command, cwd=ROOT / "systemd", capture_output=True, text=True, timeout=60, check=False)

    done = judge(score)
    assert done.returncode == 0, done.stdout
    assert f"{SERVICE}: {quoted[1]}" in done.stdout
    assert judge(score - 1).returncode == 1, "the threshold is the score itself"


def test_the_units_say_what_the_daemon_means():
    from taskforged.__main__ import _EXIT_CORRUPT, _EXIT_USAGE
    from taskforged.daemon import EXIT_DISK

    text = (ROOT / "systemd" / SERVICE).read_text()
    prevented = re.search(r"^RestartPreventExitStatus=(.*)$", text, re.MULTILINE)[1].split()
    assert {int(code) for code in prevented} == {_EXIT_USAGE, _EXIT_CORRUPT}
    assert str(EXIT_DISK) not in prevented
    for line in ("Type=notify", "NotifyAccess=main", "Restart=on-failure", "UMask=0077"):
        assert f"\n{line}\n" in text
    assert "FileDescriptorName=http\n" in (ROOT / "systemd" / SOCKET).read_text()


def test_the_units_are_in_the_package():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {"systemd": "taskforgectl/systemd"}
