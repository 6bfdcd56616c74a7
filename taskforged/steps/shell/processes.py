"""The process table: who lives, in which session, and signals to all of a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GONE_S", "Stat", "members_of", "pids", "session_of", "signal_name", "signal_session", "stat_of"]

GONE_S = 5.0
"""How long to wait for the end of what was killed. Only a process that hangs in the kernel takes longer."""


@dataclass(frozen=True, slots=True)
class Stat:
    """From /proc/<pid>/stat. `start` counts clock ticks since boot."""

    is_alive: bool
    start: int


def stat_of(pid: int) -> Stat | None:
    """What the kernel says of a process; None when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    # A zombie may still have threads: when only the first one has ended.
    is_dead = fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1
    return Stat(is_alive=not is_dead, start=int(fields[19]))


def pids() -> Iterator[int]:
    """All there are."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208


def session_of(pid: int) -> int | None:
    """The session that a process belongs to; None when there is no such process."""
    try:
        return os.getsid(pid)  # a system call is 20 times faster than a file in /proc
    except OSError:
        return None


def members_of(session: int) -> list[int]:
    """The living processes of a session, zombies left out."""
    return [pid for pid in pids() if session_of(pid) == session and (found := stat_of(pid)) and found.is_alive]


def signal_session(session: int, number: int) -> bool:
    """Signal a session; answer whether anything in it was alive.

    The number of a session must not be reused meanwhile, or strangers would be hit. Linux gives a number to nobody else
    while a process, a group or a session bears it. Here it is borne either by the leader, which is a zombie until we
    reap it and is reaped last, or, in `sweep`, by a living process that is proven to belong to it. The same holds for
    the group of that number. Other groups of the session have no such warrant: their processes are signalled one by
    one, each through a descriptor that was opened before the session was asked for.

    A group that gets SIGKILL cannot escape by forking, the kernel sees to that. The others could, so the caller
    repeats this until nothing is left.
    """
    if number:
        with suppress(ProcessLookupError, PermissionError):  # gone, or all of another user: sudo
            os.killpg(session, number)
    members = members_of(session)
    for pid in members if number else []:
        with suppress(OSError):
            if os.getpgid(pid) != session:
                _signal_member(pid, session, number)
    return bool(members)


def _signal_member(pid: int, session: int, number: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # no descriptors: a reuse of the number within this microsecond has to be risked
        os.kill(pid, number)
        return
    try:
        if session_of(pid) == session:
            signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def signal_name(number: int) -> str:
    """Answer `SIGKILL` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal
