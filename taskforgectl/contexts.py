"""Known daemons by name: where each listens, how it proves itself, what proves the caller. Kept in one private file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taskforgectl.errors import EXIT_NOT_FOUND, CliError

__all__ = ["Context", "ContextBook", "Trust"]


@dataclass(frozen=True, slots=True)
class Trust:
    """How a daemon proves itself over TLS, and its client: by a pin, by a CA, or by the system's CAs with neither.

    Attributes:
        fingerprint: SHA-256 of the daemon's certificate, `AB:CD:…`.
        certificate: the certificate with this fingerprint in PEM, where it was seen.
        ca: file of the CA's certificates.
        cert: file of the client's certificate.
        key: file of its private key.
    """

    fingerprint: str = ""
    certificate: str = field(default="", repr=False)
    ca: str = ""
    cert: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """One daemon. It has an address or a home.

    Attributes:
        tls: None: the connection is plain, or the home says.
    """

    name: str
    address: str = ""
    home: str = ""
    token: str = field(default="", repr=False)
    namespace: str = ""
    tls: Trust | None = None


class ContextBook:
    """The file with all contexts, `$XDG_CONFIG_HOME/taskforge/contexts.json`."""

    def __init__(self) -> None:
        base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
        self.path = Path(base).expanduser().absolute() / "taskforge" / "contexts.json"

    def current(self) -> str:
        """Answer the name of the context that is used where nothing else is said; empty: none."""
        return str(self._read().get("current", ""))

    def all(self) -> list[Context]:
        """Answer all contexts by name."""
        return [_parse(name, one) for name, one in sorted(self._read().get("contexts", {}).items())]

    def get(self, name: str) -> Context:
        """Answer a context.

        Raises:
            CliError: there is none of this name.
        """
        found = self._read().get("contexts", {}).get(name)
        if found is None:
            known = ", ".join(one.name for one in self.all())
            hint = (
                f"known are {known}" if known else "make one with `taskforgectl context add NAME --address HOST:PORT`"
            )
            raise CliError(f"there is no context {name!r}", hint=hint, code=EXIT_NOT_FOUND)
        return _parse(name, found)

    def has(self, name: str) -> bool:
        """Answer whether there is a context of this name."""
        return name in self._read().get("contexts", {})

    def put(self, context: Context) -> None:
        """Add or replace a context."""
        with self._changing() as content:
            values = {key: value for key, value in asdict(context).items() if key != "name" and value}
            content.setdefault("contexts", {})[context.name] = values

    def use(self, name: str) -> None:
        """Make a context current; the empty name: none."""
        with self._changing() as content:
            content["current"] = name

    def delete(self, name: str) -> None:
        """Forget a context, which must be there; when it was current, none is."""
        self.get(name)
        with self._changing() as content:
            content.get("contexts", {}).pop(name, None)
            if content.get("current") == name:
                content["current"] = ""

    def _read(self) -> dict[str, Any]:
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    hint = f"it holds tokens: close it with `chmod 600 {self.path}`"
                    raise CliError(f"{self.path} is open to other users", hint=hint)
                content = json.loads(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ValueError:
            content = None
        except OSError as error:
            raise CliError(f"cannot read {self.path}: {error.strerror}") from None
        if not isinstance(content, dict) or not isinstance(content.get("contexts", {}), dict):
            raise CliError(f"{self.path} is damaged", hint="mend it, or remove it and add the contexts again")
        return content

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """Read, let the caller change, and write whole; one process after the other."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            content = self._read()
            yield content
            self._write(content)
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write(self, content: Mapping[str, Any]) -> None:
        temporary = self.path.with_name(f"{self.path.name}.new")
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(content, file, indent=2, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(fd)
        temporary.replace(self.path)


def _parse(name: str, content: Any) -> Context:
    try:
        tls = content.get("tls")
        texts = {key: str(content.get(key, "")) for key in ("address", "home", "token", "namespace")}
        return Context(name, **texts, tls=Trust(**tls) if tls is not None else None)
    except (AttributeError, TypeError):
        hint = f"remove it with `taskforgectl context delete {name}` and add it again"
        raise CliError(f"the context {name!r} is damaged", hint=hint) from None
