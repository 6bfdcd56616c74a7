"""What an earlier daemon left behind.

After kill -9 of the daemon programs go on until the next daemon starts. A record per attempt lies in
`<scratch>/groups/`: first the boot id and a random mark that the program gets as `TASKFORGE_GROUP`, written before the
program is started, then its number and start time. `sweep` kills what is proven to be ours, see `_left_behind`.

What remains: a program that throws its environment away and whose leader is gone, or that throws it away in the
microseconds between its start and the second half of the record, is not found; nor is what left the session.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import structlog

from taskforged.steps.shell.place import MARK, RECORDS, read_record, remove_folder
from taskforged.steps.shell.processes import GONE_S, members_of, pids, session_of, signal_session, stat_of

__all__ = ["sweep"]

_log = structlog.get_logger(__name__)

_TOKEN = re.compile(r"[0-9a-f]{32}")


def sweep(scratch: Path, boot_id: str) -> int:
    """Kill programs that an earlier daemon left behind, remove their files; answer how many there were."""
    groups = scratch / RECORDS
    groups.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch.chmod(0o700)
    killed = 0
    for record in [path for path in groups.iterdir() if _TOKEN.fullmatch(path.name)]:
        sessions = _left_behind(record, boot_id) - {os.getsid(0)}
        if [session for session in sessions if not _killed(session)]:
            _log.warning("shell.not_killed", record=str(record))
            continue
        killed += len(sessions)
        record.unlink(missing_ok=True)
    for folder in [path for path in scratch.iterdir() if _TOKEN.fullmatch(path.name)]:
        if not (groups / folder.name).exists():
            remove_folder(folder)
    return killed


def _left_behind(record: Path, boot_id: str) -> set[int]:
    """The sessions with living processes that the record proves to be ours."""
    facts = read_record(record)
    if facts.get("boot_id") != boot_id:
        return set()  # nothing survives a reboot
    pid, mark = facts.get("pid"), record.name
    if not isinstance(pid, int):  # killed between start and the second half: whoever bears the mark is it
        return {session for bearer in pids() if _bears(bearer, mark) and (session := session_of(bearer))}
    members = members_of(pid)
    leader = stat_of(pid)
    if leader is not None:
        # Another start time: the number was reused, which can only be when nothing of the session was left.
        return {pid} if members and leader.start == facts.get("start") else set()
    # Without its leader a session has no start time. The mark proves it: one member is enough, as the session is the
    # same for all. "Later than the leader" would not do, that holds for a session that reuses the number, too.
    return {pid} if any(_bears(member, mark) for member in members) else set()


def _bears(pid: int, mark: str) -> bool:
    try:
        if Path(f"/proc/{pid}").stat().st_uid != os.getuid():
            return False
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _killed(session: int) -> bool:
    deadline = time.monotonic() + GONE_S
    while signal_session(session, signal.SIGKILL):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True
