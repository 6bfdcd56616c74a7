"""`doctor` and `config` against real homes: what they find, and that they change nothing."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.support import Ctl
from remote.support import leaf, put

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


def test_a_start_that_was_refused_is_no_daemon_that_died(empty):
    _first_start(empty)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "in use" in empty.error("up", code=1, TASKFORGE_HTTP_LISTEN=address)
    assert _only(_findings(empty), "boots")[0] == "OK"


def test_a_lost_token_is_a_finding(own):
    (own.home / "token").rename(own.home.with_name("kept"))
    found = _findings(Ctl(own.home), code=1)
    severity, message, remedy = _only(found, "daemon")
    assert (severity, "there is no token" in message) == ("ERROR", True)
    assert "taskforgectl init" in remedy
    assert _only(found, "home")[0] == "OK", "the rest is examined"


def test_a_daemon_that_does_not_answer(own):
    own.process.send_signal(signal.SIGSTOP)
    try:
        told = Ctl(own.home).run("doctor", "--timeout", "2", code=1).stdout
    finally:
        own.process.send_signal(signal.SIGCONT)
    assert "does not answer" in told


LONG_LOOK = """\
import asyncio, sys
from taskforged import checkup

async def examine(*_, **__):
    print("looking", file=sys.stderr, flush=True)
    await asyncio.sleep(60)

checkup._examine = examine
checkup.main(["--home", sys.argv[1]])
"""


def test_a_long_look_at_the_database_keeps_no_daemon_from_starting(own):
    """Else a service that is about to start again fails until its manager gives up."""
    ctl = Ctl(own.home)
    own.terminate()
    command = [sys.executable, "-c", LONG_LOOK, str(own.home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as looking:
        assert looking.stderr.readline() == "looking\n"
        ctl("down")  # who looks is no daemon
        assert looking.poll() is None
        own.start()
        answer = json.loads(looking.stdout.read())
    assert looking.returncode == 0
    assert answer["held"]
    assert answer["settings"]
    assert f"pid {own.pid}" in ctl("doctor")


@pytest.mark.parametrize(
    ("days", "severity", "words"),
    [(300, "OK", "valid until"), (20, "WARNING", "valid until"), (-1, "ERROR", "expired")],
)
def test_the_end_of_a_certificate_is_seen_coming(empty, days, severity, words):
    empty("init", "--tls")
    put(empty.home / "tls", leaf())
    empty("up")
    put(empty.home / "tls", leaf(days=days))
    found = _only(_findings(empty, code=int(severity == "ERROR")), "certificate")
    assert (found[0], words in found[1]) == (severity, True)
    assert ("goes on with what it has read" in found[2]) == (severity == "ERROR")
    empty("down")
    assert _only(_findings(empty, code=int(severity == "ERROR")), "certificate")[:2] == found[:2], (
        "the same without one"
    )


def test_a_certificate_that_cannot_be_used(own):
    home = own.home
    cert, key = put(home / "tls", leaf())
    (home / "config.toml").write_text('[tls]\ncert = "tls/cert.pem"\nkey = "tls/key.pem"\n')
    (home / "config.toml").chmod(0o600)
    own.terminate()
    cert.chmod(0o644)
    assert _only(_findings(Ctl(home)), "certificate")[0] == "OK", "a certificate is no secret"
    cert.chmod(0o666)
    assert any(str(cert) in message for _, message, _ in _findings(Ctl(home), code=1)["permissions"])
    cert.chmod(0o644)
    key.chmod(0o644)
    found = _findings(Ctl(home), code=1)
    assert "open to other users" in _only(found, "certificate")[1]
    assert ("ERROR", f"chmod 600 {key}") in [(one[0], one[2]) for one in found["permissions"]]
    key.chmod(0o600)
    put(home / "other", leaf())[1].replace(key)
    assert "is not the key of" in _only(_findings(Ctl(home), code=1), "certificate")[1]
    cert.unlink()
    assert "which is not there" in _only(_findings(Ctl(home), code=1), "certificate")[1]


def test_webhooks_over_tls_are_probed(empty):
    empty("init", "--tls")
    empty("up", TASKFORGE_HTTP_LISTEN="0.0.0.0:0")
    found = _findings(empty)
    assert [(severity, "https://" in message) for severity, message, _ in found["ports"]] == [("OK", True)]
    assert _only(found, "permissions")[0] == "OK", "what init makes is as it should be"
    (empty.home / "tls" / "key.pem").unlink()
    put(empty.home / "away", leaf())[0].replace(empty.home / "tls" / "cert.pem")
    found = _findings(empty, code=1)
    assert ("WARNING", True) in [
        (severity, "not the one in its file" in message) for severity, message, _ in found["ports"]
    ]


def _first_start(ctl: Ctl) -> Path:
    """Make a home whose daemon has once had the key of its file; answers the file."""
    ctl("init")
    ctl("up")
    ctl("down")
    return ctl.home / "master.key"


def test_a_lost_master_key_is_an_error(empty):
    key = _first_start(empty)
    assert _only(_findings(empty), "master key")[0] == "OK"
    kept = key.read_text()
    key.write_text(base64.b64encode(bytes(32)).decode())
    assert "does not hold the master key" in _only(_findings(empty, code=1), "master key")[1]
    key.unlink()
    assert "is missing" in _only(_findings(empty, code=1), "master key")[1]
    assert _only(_findings(empty, TASKFORGE_MASTER_KEY=kept), "master key")[0] == "OK"


def test_a_master_key_from_elsewhere_is_none_that_is_missing(empty, tmp_path):
    key = _first_start(empty)
    credential = tmp_path / "credentials" / "taskforge-master-key"
    credential.parent.mkdir()
    key.rename(credential)
    empty("up", CREDENTIALS_DIRECTORY=str(credential.parent))
    severity, message, _ = _only(_findings(empty), "master key")
    assert (severity, "systemd credential" in message) == ("OK", True)
    empty("down")
    config = tmp_path / "config"
    unit = config / "systemd" / "user" / "taskforged.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(f"[Service]\nEnvironment=TASKFORGE_HOME={empty.home}\n")
    assert _only(_findings(empty, code=1, XDG_CONFIG_HOME=str(config)), "master key")[0] == "ERROR"
    unit.with_name("taskforged.service.d").mkdir()
    (unit.with_name("taskforged.service.d") / "key.conf").write_text(
        f"LoadCredential=taskforge-master-key:{credential}\n"
    )
    severity, message, _ = _only(_findings(empty, XDG_CONFIG_HOME=str(config)), "master key")
    assert (severity, "from elsewhere" in message) == ("OK", True)


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
