"""The home as a client may know it: the run file, the lock, the token, the log. It never opens the database."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskforgectl.errors import EXIT_DENIED, EXIT_USAGE, CliError
from taskforgectl.options import Settings

__all__ = ["Home", "RunFile", "local_home"]


@dataclass(frozen=True, slots=True)
class RunFile:
    """Where a daemon said how to reach it. It may be left over from one that was killed.

    Attributes:
        certificate: file of its certificate; empty: TCP is plain.
        folder: which folder its home is; empty: it did not say.
    """

    pid: int
    version: str
    grpc: tuple[str, ...]
    http: str
    boot_epoch: int
    certificate: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Home:
    """The data folder of one daemon."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings."""
        return self.path / "config.toml"

    @property
    def master_key(self) -> Path:
        """The key that secrets are encrypted with."""
        return self.path / "master.key"

    @property
    def token_file(self) -> Path:
        """The administrator's token."""
        return self.path / "token"

    @property
    def log(self) -> Path:
        """Where a daemon in the background writes."""
        return self.path / "taskforged.log"

    @property
    def lock(self) -> Path:
        """The file that a living daemon holds locked."""
        return self.path / "taskforged.lock"

    def run_file(self) -> RunFile | None:
        """Answer the run file, or None when there is none: no daemon is ready. One that was copied is not ours."""
        path = self.path / "taskforged.json"
        try:
            known = _parse(json.loads(path.read_bytes()))
            return known if known.folder in {"", _identity(self.path)} else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            raise _forbidden(path) from None
        except (ValueError, KeyError, TypeError):
            hint = "a daemon that starts writes it anew: `taskforgectl down`, then `taskforgectl up`"
            raise CliError(f"{path} is damaged", hint=hint) from None

    def token(self) -> str:
        """Answer the administrator's token.

        Raises:
            CliError: there is none, or it is not ours to read.
        """
        try:
            return self.token_file.read_text().strip()
        except (FileNotFoundError, NotADirectoryError):
            hint = (
                "`taskforgectl init` makes one, a running daemon takes it with `taskforgectl restart`; or give --token"
            )
            raise CliError(f"there is no token at {self.token_file}", hint=hint, code=EXIT_DENIED) from None
        except PermissionError:
            raise _forbidden(self.token_file) from None

    def replace_token(self, secret: str) -> Path | None:
        """Write a token's new secret over its old one; answers the file, None when the home's token is another one."""
        known = secret.rpartition("_")[0] + "_"
        try:
            is_ours = self.token_file.read_text().startswith(known)
        except OSError:
            return None
        if not is_ours:
            return None
        temporary = self.token_file.with_name("token.new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(fd)
        temporary.replace(self.token_file)
        return self.token_file

    def daemon_lives(self) -> bool:
        """Answer whether a process holds the home.

        The lock is tried shared and given back at once; a daemon that starts in that instant would be refused, so ask
        only where the run file does not settle the matter.
        """
        try:
            fd = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except PermissionError:
            raise _forbidden(self.lock) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return not self.lock.read_text().strip().endswith(" look")  # a check-up gives way to a daemon
        finally:
            os.close(fd)
        return False

    def daemon_pid(self) -> int | None:
        """Answer the process that holds the home, None when nobody does.

        Only the lock proves that the process lives and is a daemon; a number in a file may by now be anybody's.
        """
        if not self.daemon_lives():
            return None
        holder = self.lock.read_text().strip()  # written by the holder right after it got the lock
        if holder.isdigit():
            return int(holder)
        known = self.run_file()
        return known.pid if known else None


def local_home(settings: Settings, verb: str) -> Home:
    """Answer the home, for what works on files and processes of this machine.

    Raises:
        CliError: another daemon is meant.
    """
    if settings.context is not None and settings.address:
        told = f"{verb} works on a home, and the context {settings.context.name} is of the daemon at {settings.address}"
        raise CliError(told, hint=f"for the home of this machine: taskforgectl --context local {verb}", code=EXIT_USAGE)
    if settings.address:
        hint = "leave out --address and TASKFORGE_ADDRESS"
        raise CliError(f"{verb} works on a home, not on an address", hint=hint, code=EXIT_USAGE)
    return Home(settings.home)


def _identity(folder: Path) -> str:
    """Tell a folder from a copy of it, as the daemon does."""
    found = folder.stat()
    return f"{found.st_dev}:{found.st_ino}"


def _parse(content: Any) -> RunFile:
    return RunFile(
        pid=int(content["pid"]),
        version=str(content["version"]),
        grpc=tuple(str(address) for address in content["grpc"]),
        http=str(content["http"]),
        boot_epoch=int(content.get("boot_epoch", 0)),
        certificate=str(content.get("certificate", "")),
        folder=str(content.get("folder", "")),
    )


def _forbidden(path: Path) -> CliError:
    hint = "work as the user that owns the home, or give --address and --token"
    return CliError(f"{path} is not yours to read", hint=hint, code=EXIT_DENIED)
