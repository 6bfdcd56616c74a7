"""The master key: where it comes from, and how it is replaced so that no crash leaves the daemon without one.

Sources, the first that is there: the variable TASKFORGE_MASTER_KEY, the systemd credential `taskforge-master-key`, the
file `master.key` in the home. Each holds 32 random bytes in base64. Beside each may stand a second key: for the first
two the one before (TASKFORGE_MASTER_KEY_PREVIOUS, `taskforge-master-key-previous`), from which the start goes over to
the new one; for the file `master.key.new`, which is there only while the key is being rotated. Which of both the
secrets are encrypted with, the database knows by the key's id.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from taskforged.errors import CorruptStoreError, FailedPreconditionError
from taskforged.failpoints import reach

__all__ = ["CREDENTIAL", "VARIABLE", "KeySource", "find_keys", "key_id"]

VARIABLE = "TASKFORGE_MASTER_KEY"
CREDENTIAL = "taskforge-master-key"
_BYTES = 32


def key_id(key: bytes) -> str:
    """Answer a key's fingerprint: it tells keys apart, and nothing of the key."""
    return hmac.digest(key, b"taskforge master key", hashlib.sha256).hex()[:16]


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where the key comes from.

    Attributes:
        key: None: there is none yet, or it is lost.
        other: the one before, or of a rotation that may not have been finished.
        place: for people.
        file: where it lies, when the daemon may replace it itself.
    """

    key: bytes | None
    other: bytes | None
    place: str
    file: Path | None = None

    def prepare(self) -> tuple[bytes, bytes]:
        """Make a new key and write it beside the present one; answers the present and the new one.

        Raises:
            FailedPreconditionError: the key is not the daemon's to replace.
        """
        if self.file is None or self.key is None:
            raise FailedPreconditionError(
                f"the master key comes from {self.place}: to rotate it, give the new one there and the present one as"
                f" {VARIABLE}_PREVIOUS or {CREDENTIAL}-previous, and restart",
                reason="KEY_NOT_IN_FILE",
            )
        fresh = secrets.token_bytes(_BYTES)
        _write(_beside(self.file), fresh)
        return self.key, fresh

    def adopt(self, key: bytes) -> KeySource:
        """The secrets are encrypted with this key: make it the one that the next start finds first."""
        if self.file is not None:
            beside = _beside(self.file)
            if key != self.key:
                beside.replace(self.file)
                reach("key.replaced")
            else:
                beside.unlink(missing_ok=True)
            _sync(self.file.parent)
        return KeySource(key, None, self.place, self.file)

    def create(self) -> KeySource:
        """Make the first key of a home that has none."""
        assert self.file is not None
        fresh = secrets.token_bytes(_BYTES)
        _write(_beside(self.file), fresh)
        return KeySource(None, fresh, self.place, self.file).adopt(fresh)


def find_keys(file: Path, environment: Mapping[str, str] = os.environ) -> KeySource:
    """Answer the keys that are there; `file` is the home's.

    Raises:
        CorruptStoreError: what is there is not a key.
    """
    if environment.get(VARIABLE):
        key = _decode(environment[VARIABLE], VARIABLE)
        previous = environment.get(f"{VARIABLE}_PREVIOUS", "")
        return KeySource(
            key, _decode(previous, f"{VARIABLE}_PREVIOUS") if previous else None, f"the variable {VARIABLE}"
        )
    folder = environment.get("CREDENTIALS_DIRECTORY", "")
    credential = Path(folder, CREDENTIAL)
    if folder and credential.exists():
        previous_file = credential.with_name(f"{CREDENTIAL}-previous")
        before = _read(previous_file) if previous_file.exists() else None
        return KeySource(_read(credential), before, f"the systemd credential {CREDENTIAL}")
    other = None
    with contextlib.suppress(CorruptStoreError, FileNotFoundError):  # cut while it was written: it was never used
        other = _read(_beside(file))
    return KeySource(_read(file) if file.exists() else None, other, str(file), file)


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.new")


def _read(path: Path) -> bytes:
    try:
        return _decode(path.read_text(), str(path))
    except UnicodeDecodeError:
        raise _no_key(str(path)) from None


def _decode(text: str, place: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _BYTES:
        raise _no_key(place)
    return key


def _no_key(place: str) -> CorruptStoreError:
    return CorruptStoreError(f"{place} does not hold 32 bytes in base64; restore it from your backup of the key")


def _write(path: Path, key: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(base64.b64encode(key) + b"\n")
        file.flush()
        os.fsync(fd)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
