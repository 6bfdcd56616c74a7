"""Where a program is executed: the files of an attempt, the record that outlives the daemon among them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from taskforged.steps.shell.processes import stat_of

__all__ = ["MARK", "RECORDS", "Place", "read_record", "remove_folder"]

MARK = "TASKFORGE_GROUP"
"""The variable by which a program is known: it holds a random mark, which is the name of the attempt's files, too."""
RECORDS = "groups"
"""The folder of the records."""


class Place:
    """The files of one attempt: its record, its own folder, its standard input.

    Attributes:
        folder: the working directory, private.
        record: see `sweep`. The page cache outlives the daemon, and after a power cut nothing is left to be killed, so
            nothing is forced to the disk.
        stdin: a file in memory; a pipe would have to be fed while the program runs.
        is_over: nothing of the attempt is alive.
    """

    def __init__(self, scratch: Path, mark: str, boot_id: str) -> None:
        self.folder = scratch / mark
        self.record = scratch / RECORDS / mark
        self.stdin: int | None = None
        self.is_over = True
        self._boot_id = boot_id
        self._record_fd: int | None = None

    def make(self, stdin: bytes | None) -> None:
        """Make everything.

        Raises:
            OSError: the disk is full, or too many files are open.
        """
        self.folder.mkdir(mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._record_fd = os.open(self.record, flags, 0o600)
        os.write(self._record_fd, json.dumps({"boot_id": self._boot_id}).encode() + b"\n")
        if stdin is not None:
            self.stdin = os.memfd_create("stdin", os.MFD_CLOEXEC)
            with open(self.stdin, "wb", closefd=False) as file:
                file.write(stdin)
            os.lseek(self.stdin, 0, os.SEEK_SET)

    def started(self, pid: int) -> None:
        """Complete the record."""
        found = stat_of(pid)
        if self._record_fd is not None and found is not None:
            os.write(self._record_fd, json.dumps({"pid": pid, "start": found.start}).encode() + b"\n")

    def close(self) -> None:
        """Close the files. Idempotent."""
        for fd in (self._record_fd, self.stdin):
            if fd is not None:
                os.close(fd)
        self._record_fd = self.stdin = None

    def remove(self) -> None:
        """Remove everything; while something is alive its record stays for the next daemon."""
        self.close()
        if self.is_over:
            remove_folder(self.folder)
            self.record.unlink(missing_ok=True)


def read_record(record: Path) -> Mapping[str, Any]:
    """What was written until the daemon died."""
    facts: dict[str, Any] = {}
    for line in record.read_bytes().splitlines():
        with suppress(ValueError):  # a half-written line
            facts.update(json.loads(line))
    return facts


def remove_folder(folder: Path) -> None:
    """Remove a folder whatever a program made of it, as far as that is possible."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        return
    for parent, names, _ in os.walk(folder):  # top down: each becomes readable before it is listed
        for path in [Path(parent, name) for name in names]:  # some tools make folders that cannot be written to
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
