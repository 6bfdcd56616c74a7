"""`doctor` and `config` against real homes: what they find, and that they change nothing."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import time

import pytest
from cli.support import Ctl

pytestmark = pytest.mark.timeout(240)
"""Many processes, one after the other."""

OPEN_DOOR = """\
name: door
on:
  anybody:
    webhook: {path: open, verify: {scheme: none}}
steps:
  - id: one
    transform: {a: 1}
"""


def _findings(ctl: Ctl, *arguments: str, code: int = 0, **extra: str) -> dict[str, list[tuple[str, str, str]]]:
    found: dict[str, list[tuple[str, str, str]]] = {}
    for one in ctl.json("doctor", *arguments, code=code, **extra)["findings"]:
        assert one["message"], one
        assert (one["severity"] == "OK") == (not one["remedy"]), "what is wrong says how to mend it"
        found.setdefault(one["check"], []).append((one["severity"], one["message"], one["remedy"]))
    return found


def _only(found: dict[str, list[tuple[str, str, str]]], check: str) -> tuple[str, str, str]:
    assert len(found[check]) == 1, found[check]
    return found[check][0]


def test_a_healthy_daemon(own):
    ctl = Ctl(own.home)
    found = _findings(ctl)
    told = {
        name: all_of_it for name, all_of_it in found.items() if name not in {"sqlite", "backups"}
    }  # of no fault here
    assert {severity for all_of_it in told.values() for severity, *_ in all_of_it} == {"OK"}
    assert {"home", "permissions", "ports", "daemon", "database", "schema", "clock", "time zones", "disk"} <= set(found)
    told = ctl("doctor")
    assert "no errors" in told
    assert f"pid {own.pid}" in told


def test_a_home_that_is_not_there(empty):
    found = _findings(empty, code=1)
    assert _only(found, "home")[0] == "ERROR"
    assert "taskforgectl init" in _only(found, "home")[2]
    assert not empty.home.exists(), "doctor makes nothing"


def test_a_home_without_a_daemon_is_examined_by_the_daemons_program(empty):
    empty("init")
    empty("up")
    empty("down")
    before = {path.name: path.read_bytes() for path in empty.home.iterdir() if path.suffix in {".db", ".toml"}}
    found = _findings(empty)
    assert _only(found, "daemon")[0] == "WARNING"
    assert _only(found, "database")[0] == _only(found, "schema")[0] == "OK"
    assert before == {name: (empty.home / name).read_bytes() for name in before}
    assert empty.json("up")["boot_epoch"] == 2, "and the home can be used"


def test_open_files_are_errors(empty):
    empty("init")
    (empty.home / "token").chmod(0o644)
    found = _findings(empty, code=1)
    assert [(one[0], one[2]) for one in found["permissions"]] == [("ERROR", f"chmod 600 {empty.home}/token")]
    (empty.home / "token").chmod(0o600)
    empty.home.chmod(0o750)
    found = _findings(empty, code=1)
    assert ("ERROR", f"chmod 700 {empty.home}") in [(one[0], one[2]) for one in found["home"]]
    empty.home.chmod(0o700)


def test_a_linked_home_is_told(empty, tmp_path):
    empty("init")
    link = tmp_path / "link"
    link.symlink_to(empty.home)
    found = _findings(Ctl(link), code=1 if tmp_path.stat().st_mode & 0o022 else 0)
    assert any("is a link" in message for _, message, _ in found["home"])


def test_a_damaged_database_is_found_with_and_without_a_daemon(own):
    ctl = Ctl(own.home)
    own.terminate()
    with contextlib.closing(sqlite3.connect(own.home / "taskforge.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        columns = "id, namespace_no, workflow_no, key, kind, address, created_at"
        connection.execute(f"INSERT INTO triggers ({columns}) VALUES ('trg_lost', 4711, 4711, 'k', 'event', 'x', 1)")
    faults = _findings(ctl, code=1)["database"]
    assert {(severity, "backup" in remedy) for severity, _, remedy in faults} == {("ERROR", True)}
    assert any("refers to a row of namespaces" in message for _, message, _ in faults)
    own.start()
    assert _findings(ctl, code=1)["database"] == faults


def test_a_file_that_is_no_database(empty):
    empty("init")
    (empty.home / "taskforge.db").write_bytes(b"nothing of the kind\n" * 500)
    (empty.home / "taskforge.db").chmod(0o600)
    found = _findings(empty, code=1)
    assert "ERROR" in {severity for one in ("schema", "database") for severity, *_ in found.get(one, [])}


def test_a_clock_that_was_set_back(own):
    own.terminate()
    with contextlib.closing(sqlite3.connect(own.home / "taskforge.db", isolation_level=None)) as connection:
        future = (int(time.time()) + 86_400) * 1_000_000
        connection.execute("INSERT INTO boots (started_at, pid, version) VALUES (?, 1, '0')", (future,))
    severity, message, _ = _only(_findings(Ctl(own.home), code=1), "clock")
    assert (severity, "set back" in message) == ("ERROR", True)


def test_webhooks_for_anybody_and_faults_of_the_settings(own):
    ctl = Ctl(own.home)
    ctl.apply(OPEN_DOOR)
    severity, message, _ = _only(_findings(ctl), "webhooks")
    assert (severity, "default/door/anybody" in message) == ("WARNING", True)
    (own.home / "config.toml").write_text("[grpc]\nlissten = 1\n[executor]\npool_size = 0\n")
    (own.home / "config.toml").chmod(0o600)
    faults = [message for severity, message, _ in _findings(ctl, code=1)["config"] if severity == "ERROR"]
    assert len(faults) == 2, "every fault is told"
    assert any("did you mean [grpc] listen?" in one for one in faults)
    (own.home / "config.toml").write_text("[executor]\npool_size = 7\n")
    severity, message, remedy = _only(_findings(ctl), "config")
    assert (severity, "[executor] pool_size" in message, "restart" in remedy) == ("WARNING", True, True)
    own.terminate()
    (own.home / "config.toml").write_text("[grpc]\nlissten = 1\n")
    assert "did you mean" in _only(_findings(ctl, code=1), "config")[1]


def test_a_killed_daemon_and_a_port_that_is_taken(own):
    ctl = Ctl(own.home)
    own.kill()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found = _findings(ctl, code=1, TASKFORGE_HTTP_LISTEN=address)
    assert "was killed" in _only(found, "daemon")[1]
    assert _only(found, "boots")[0] == "WARNING"
    assert any(severity == "ERROR" and address in message for severity, message, _ in found["ports"])


def test_a_daemon_that_does_not_answer(own):
    own.process.send_signal(signal.SIGSTOP)
    try:
        told = Ctl(own.home).run("doctor", "--timeout", "2", code=1).stdout
    finally:
        own.process.send_signal(signal.SIGCONT)
    assert "does not answer" in told


def test_names_of_what_was_found(empty):
    assert empty("doctor", "-o", "name", code=1).split() == ["home"]


def test_every_check_is_documented():
    from harness import ROOT

    from taskforgectl.doctor.checks import LOCAL, REMOTE
    from taskforged.control.examinations import CHECKS

    page = (ROOT / "docs" / "operations.md").read_text()
    cells = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert {name for name in {*CHECKS, *LOCAL, *REMOTE} if f"`{name}`" not in cells} == set()


# --- config ----------------------------------------------------------------------------------------------------------


def test_config_of_a_running_daemon_and_of_the_next_one(own):
    ctl = Ctl(own.home)
    (own.home / "config.toml").write_text("[executor]\npool_size = 7\n")
    listed = {(one["section"], one["key"]): one for one in ctl.json("config", "list")}
    assert (listed["executor", "pool_size"]["value"], listed["executor", "pool_size"]["source"]) == (64, "DEFAULT")
    assert listed["log", "format"]["source"] == "VARIABLE"
    own.terminate()
    listed = {(one["section"], one["key"]): one for one in ctl.json("config", "list")}
    assert (listed["executor", "pool_size"]["value"], listed["executor", "pool_size"]["source"]) == (7, "FILE")
    assert ctl("config", "get", "executor.pool_size") == "7\n"
    assert "executor.pool_size" in ctl("config", "list", "--changed")


def test_config_get_names_what_was_meant(empty):
    empty("init")
    assert "did you mean executor.pool_size?" in empty.error("config", "get", "executor.pool-size", code=3)
    assert empty("config", "get", "grpc.listen") == "127.0.0.1:0\n"


def test_config_path_and_check(empty):
    empty("init")
    path = empty("config", "path").strip()
    assert path == str(empty.home / "config.toml")
    assert "is valid" in empty("config", "check")
    with open(path, "a") as file:
        file.write("pretti = 1\n")
    assert empty.json("config", "check", code=1)["valid"] is False
    assert "unknown setting [log] pretti" in empty.run("config", "check", code=1).stderr


@pytest.mark.parametrize("role", ["operator", "viewer", "worker"])
def test_only_an_administrator_looks_at_the_daemon(ctl, role):
    token = ctl.json("token", "create", f"looks-{role}", "--role", role)["secret"]
    for arguments in (["doctor"], ["config", "list"]):
        ctl.error(*arguments, "--token", token, code=4)


def test_an_administrator_of_one_namespace_does_not(ctl):
    ctl("namespace", "set", "tenant")
    token = ctl.json("token", "create", "tenant-admin", "--role", "admin", "--for-namespace", "tenant")["secret"]
    assert "confined" in ctl.error("config", "list", "--token", token, code=4)


def test_credentials_in_addresses_are_masked():
    from taskforged.control.settings import _masked

    assert _masked(["http://ada:secret@proxy.example:3128", 7]) == ["http://***@proxy.example:3128", 7]
