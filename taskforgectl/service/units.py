"""The unit files: shipped as templates, filled in for one home, installed without overwriting what somebody changed.

The first line of an installed unit holds the digest of the rest. A file whose digest fits is as it was installed and
may be brought up to date; any other one is its owner's.

A user has one service. What differs from home to home stands in the units themselves, so the service of another home
is refused instead of being turned over silently.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from taskforgectl.errors import CliError

__all__ = [
    "SERVICE",
    "SOCKET",
    "Change",
    "Installed",
    "Place",
    "gives_master_key",
    "installed",
    "program",
    "refresh",
    "rendered",
    "served_home",
    "unit_folder",
]

SERVICE = "taskforged.service"
SOCKET = "taskforged.socket"

_HEAD = "# Installed by `taskforgectl init --systemd`, which updates it while it is unchanged: "
_KEY = re.compile(
    r'^(?:Load|Set)Credential(?:Encrypted)?="?taskforge-master-key\b|^Environment=.*\bTASKFORGE_MASTER_KEY=',
    re.MULTILINE,
)
_HOME = re.compile(r'^Environment=(?:"TASKFORGE_HOME=((?:[^"\\\n]|\\.)*)"|TASKFORGE_HOME=(\S*))', re.MULTILINE)


class Place(NamedTuple):
    """What units are filled in with: the home, the program, the address for webhooks."""

    home: Path
    program: Path
    listen: str


class Change(StrEnum):
    """What an installation would do, or has done, with a unit."""

    MADE = "made"
    UPDATED = "updated"
    SAME = "left alone"
    THEIRS = "left alone, changed by you"


class Installed(NamedTuple):
    """A unit file on this machine; `change` is what would bring it up to date."""

    path: Path
    change: Change


def unit_folder() -> Path:
    """Answer where a user's own units are."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def program() -> Path:
    """Answer the daemon's program: the one beside the interpreter that runs this one.

    Raises:
        CliError: there is none.
    """
    beside = Path(sys.executable).parent / "taskforged"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("taskforged")
    if found is None:
        raise CliError(f"there is no program {beside}", hint="install the package taskforge, which has it")
    return Path(found).absolute()


def rendered(name: str, place: Place) -> str:
    """Answer the content of an installed unit."""
    text = _template(name)
    if name == SERVICE:
        text = _filled(text, "ExecStart=", _quoted(str(place.program), "$"))
        text = _filled(text, "Environment=TASKFORGE_HOME=", _quoted(f"TASKFORGE_HOME={place.home}"), key="Environment=")
        text = _filled(text, "ReadWritePaths=", _quoted(str(place.home)))
    else:
        text = _filled(text, "ListenStream=", place.listen.replace("localhost:", "127.0.0.1:"))
    return f"{_HEAD}{_digest(text)}\n{text}"


def installed(name: str, place: Place) -> Installed:
    """Answer how a unit stands."""
    path = unit_folder() / name
    try:
        present = path.read_text()
    except FileNotFoundError:
        return Installed(path, Change.MADE)
    if present == rendered(name, place):
        return Installed(path, Change.SAME)
    head, _, rest = present.partition("\n")
    return Installed(path, Change.UPDATED if head == f"{_HEAD}{_digest(rest)}" else Change.THEIRS)


def refresh(name: str, place: Place) -> Installed:
    """Install a unit, or bring it up to date; leaves alone what somebody changed."""
    found = installed(name, place)
    if found.change in {Change.MADE, Change.UPDATED}:
        found.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = found.path.with_name(f".{name}.{os.getpid()}.new")
        temporary.write_text(rendered(name, place))
        temporary.chmod(0o644)
        temporary.replace(found.path)
    return found


def served_home() -> Path | None:
    """Answer the home that the installed service is for; None: none is installed, or its home is not to be seen.

    Drop-ins of the user count, as they do for systemd: the last one wins.
    """
    found = None
    for text in _service_files():
        for quoted, plain in _HOME.findall(text):
            found = _unquoted(quoted or plain)
    return None if found is None else Path(found)


def gives_master_key(home: Path) -> bool:
    """Whether the installed service is for a home and hands its daemon the master key."""
    served = served_home()
    is_ours = served is not None and served.resolve() == home.resolve()
    return is_ours and any(_KEY.search(text) for text in _service_files())


def _service_files() -> Iterator[str]:
    """Yield the text of the installed service and of its drop-ins; nothing when none is installed."""
    unit = unit_folder() / SERVICE
    if not unit.exists():
        return
    for path in [unit, *sorted(unit.with_name(f"{SERVICE}.d").glob("*.conf"))]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            yield path.read_text()


def _template(name: str) -> str:
    packaged = files("taskforgectl") / "systemd" / name
    if packaged.is_file():
        return packaged.read_text()
    return (Path(__file__).resolve().parents[2] / "systemd" / name).read_text()  # a checkout


def _filled(text: str, start: str, value: str, *, key: str = "") -> str:
    lines = [f"{key or start}{value}" if line.startswith(start) else line for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def _quoted(text: str, special: str = "") -> str:
    """Answer a text as one word of a unit file (systemd.syntax(7)); `special`: what else is doubled."""
    for one in f"%{special}":
        text = text.replace(one, one * 2)
    if re.fullmatch(r"[\w@%+=:,./$-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _unquoted(text: str) -> str:
    text = text.replace('\\"', '"').replace("\\\\", "\\")
    return text.replace("%h", str(Path.home())).replace("%%", "%")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
