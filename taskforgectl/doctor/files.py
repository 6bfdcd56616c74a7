"""The home: whose it is, who can read it, and what it lies on."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from taskforgectl.doctor.model import Finding, Ground, error, ok, warning

__all__ = ["check_file_system", "check_folder", "check_log", "check_permissions"]

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs"})
_VOLATILE = frozenset({"tmpfs", "ramfs"})
_LOG_MAX = 256 << 20
_CERTIFICATE_MAX = 1 << 20


def check_folder(ground: Ground) -> Iterator[Finding]:
    """The folder itself."""
    path = ground.home.path
    try:
        found = path.stat()
    except FileNotFoundError:
        yield error(f"{path} does not exist", "make it: `taskforgectl init`")
        return
    except OSError as problem:
        yield error(f"{path} cannot be read: {problem.strerror}", "work as the user that owns it")
        return
    if not stat.S_ISDIR(found.st_mode):
        yield error(f"{path} is not a folder", "name another one with --home")
        return
    faults = list(_faults(path, found))
    yield from faults or [ok(f"{path} is yours alone")]


def _faults(path: Path, found: os.stat_result) -> Iterator[Finding]:
    if found.st_uid != os.getuid():
        yield error(f"{path} belongs to another user (uid {found.st_uid})", "work as that user, or use another --home")
    if found.st_mode & 0o077:
        yield error(f"{path} is open to other users", f"chmod 700 {path}")
    if path.is_symlink():
        target = path.resolve()
        yield warning(f"{path} is a link to {target}", f"give --home {target}, so that a changed link cannot mix homes")
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if mode & 0o022 and not mode & stat.S_ISVTX:
            yield error(f"other users can replace {path}: they may write to {folder}", f"chmod go-w {folder}")


def check_permissions(ground: Ground) -> Iterator[Finding]:
    """Everything in it that is secret: token, key, configuration, certificates, database, backups."""
    home = ground.home
    if not home.path.is_dir() or not os.access(home.path, os.R_OK | os.X_OK):
        return
    count, open_ones = 0, []
    for path in _private(home.path):
        try:
            found = path.lstat()
        except OSError:  # gone meanwhile
            continue
        count += 1
        if stat.S_ISLNK(found.st_mode):
            yield warning(f"{path} is a link to {path.resolve()}", "keep the file itself in the home")
        elif found.st_uid != os.getuid():
            yield error(f"{path} belongs to another user (uid {found.st_uid})", f"chown {os.getuid()} {path}")
        elif found.st_mode & (0o022 if _is_certificate(path) else 0o077):
            open_ones.append(path)
    for path in open_ones:
        yield error(f"{path} can be read by other users", f"chmod {'700' if path.is_dir() else '600'} {path}")
    if not open_ones:
        yield ok(f"{count} files, none of them open to other users")


def _private(folder: Path) -> Iterator[Path]:
    """Yield what is in the home, and one level deeper; work of shell steps is theirs."""
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink() and path.name != "shell" and os.access(path, os.R_OK | os.X_OK):
            yield from sorted(path.iterdir())[:1000]


def _is_certificate(path: Path) -> bool:
    """Whether a file is one that every client is shown, which may be readable for others."""
    if path.suffix not in {".pem", ".crt"} or not path.is_file():
        return False
    with path.open("rb") as file:
        content = file.read(_CERTIFICATE_MAX)
    return b"-----BEGIN CERTIFICATE-----" in content and b"PRIVATE KEY" not in content


def check_file_system(ground: Ground) -> Iterator[Finding]:
    """What the home lies on: locks and fsync have to mean something there."""
    path = ground.home.path
    if not path.exists():
        return
    kind = _file_system(path.resolve())
    if kind in _NETWORK or kind.startswith("fuse."):
        yield warning(
            f"{path} lies on {kind}, where locks and fsync may not mean what SQLite needs",
            "move the home to a local disk",
        )
    elif kind in _VOLATILE:
        yield warning(f"{path} lies on {kind}: it is lost when the machine restarts", "move the home to a local disk")
    else:
        yield ok(f"{path} lies on {kind or 'a local disk'}")


def _file_system(path: Path) -> str:
    """Answer the type of the file system that a path lies on; empty when the kernel does not tell."""
    best, kind = "", ""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def check_log(ground: Ground) -> Iterator[Finding]:
    """The log of a daemon in the background, which keeps itself small."""
    try:
        size = ground.home.log.stat().st_size
    except OSError:
        return
    if size > _LOG_MAX:
        yield warning(f"{ground.home.log} has {size >> 20:,} MiB", "see [log] file_mib; a restart begins a new file")
    else:
        yield ok(f"{ground.home.log} has {size >> 10:,} KiB")
