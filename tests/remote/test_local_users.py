"""Other users of the same machine, and the moments in which a file could be open to them."""

import os
import stat
import subprocess
import sys
import threading

import pytest
from harness import Daemon, DaemonError

NOBODY = 65_534

# Becomes another user, and prints what it could do.
TRY = """
import os, socket, sys
home, user = sys.argv[1], int(sys.argv[2])
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
for name in ["taskforge.db", "taskforge.db-wal", "token", "master.key", "taskforged.json", "config.toml", "backups", "."]:
    try:
        os.close(os.open(os.path.join(home, name), os.O_RDONLY))
        print("read", name)
    except PermissionError:
        pass
    except FileNotFoundError:
        print("missed", name)
try:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.path.join(home, "taskforged.sock"))
    print("connected")
except PermissionError:
    pass
print("tried")
"""


def attempt(home, user=0):
    command = [sys.executable, "-c", TRY, str(home), str(user)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60, check=False)
    assert done.stdout.endswith("tried\n"), done.stderr
    return done.stdout.split("\n")[:-2]


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@as_root
async def test_another_user_reads_nothing_and_connects_to_nothing(daemon):
    daemon.home.parent.chmod(0o755)  # so that the home itself has to keep others out
    assert {"read taskforge.db", "read token", "read .", "connected"} <= set(attempt(daemon.home))
    assert attempt(daemon.home, NOBODY) == []


@as_root
async def test_what_is_in_the_home_is_closed_by_itself(daemon):
    """Also where somebody has opened the folder while the daemon runs."""
    daemon.home.parent.chmod(0o755)
    daemon.home.chmod(0o755)
    found = attempt(daemon.home, NOBODY)
    assert [one for one in found if not one.startswith("missed")] == ["read ."]


def test_the_socket_is_never_open_under_any_umask():
    daemon = Daemon(wrapper=["sh", "-c", 'umask 0; exec "$@"', "sh"])
    seen, over = set(), threading.Event()

    def watch():
        path = str(daemon.home / "taskforged.sock")
        while not over.is_set():
            try:
                seen.add(stat.S_IMODE(os.stat(path).st_mode))
            except FileNotFoundError:
                continue

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        daemon.start()
    finally:
        over.set()
        watching.join()
        daemon.close()
    assert {oct(mode) for mode in seen} == {"0o600"}


def test_a_second_daemon_on_the_same_home_is_refused():
    first = Daemon()
    try:
        first.start()
        second = Daemon(first.home)
        with pytest.raises(DaemonError, match="ended with"):
            second.start()
        assert (first.home / "taskforged.sock").exists(), "the first one's socket stays"
    finally:
        first.close()
