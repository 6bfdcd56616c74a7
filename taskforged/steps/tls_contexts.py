"""How servers are verified and what the step `http` shows them: one TLS context for each way, made once and kept."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections import OrderedDict
from dataclasses import dataclass

from taskforged.errors import FailedPreconditionError, InvalidArgumentError

__all__ = ["Tls", "TlsContexts"]

_KEPT_MAX = 64
"""Contexts that are kept; one with the system's authorities takes about a megabyte."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What a step says about TLS, all in PEM.

    Attributes:
        ca: the only authorities that are trusted; empty: the system's and the operator's.
        cert: the client's certificate, with what leads to its authority behind it; empty: none.
        key: its key.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""

    @property
    def digest(self) -> bytes:
        """Names this way without holding the key."""
        return hashlib.sha256(f"{self.ca}\0{self.cert}\0{self.key}".encode()).digest()


class TlsContexts:
    """Makes contexts when they are needed, in a thread, since loading authorities takes tens of milliseconds."""

    def __init__(self, ca_file: str) -> None:
        self._default: ssl.SSLContext | None = None
        self._ca_file = ca_file
        self._kept: OrderedDict[bytes, ssl.SSLContext] = OrderedDict()
        self._making = asyncio.Lock()

    async def start(self) -> None:
        """Read the operator's authorities.

        Raises:
            FailedPreconditionError: the file is missing or holds none.
        """
        if not self._ca_file:
            return
        try:
            self._default = await asyncio.to_thread(_trusting, "", self._ca_file)
        except (OSError, ssl.SSLError) as error:
            reason = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
            raise FailedPreconditionError(
                f"the certificate authorities of [egress] ca_file, {self._ca_file}, cannot be used: {reason}",
                reason="CA_FILE",
                metadata={"file": self._ca_file},
            ) from None

    async def default(self) -> ssl.SSLContext:
        """The context for a step that says nothing of TLS: it trusts the system's authorities and the operator's."""
        async with self._making:
            if self._default is None:
                self._default = await asyncio.to_thread(_trusting, "", self._ca_file)
        return self._default

    async def of(self, tls: Tls) -> ssl.SSLContext:
        """The context for a step.

        Raises:
            InvalidArgumentError: something in `tls` is not what it should be.
        """
        digest = tls.digest
        async with self._making:  # one at a time: those who want the same one then find it
            context = self._kept.pop(digest, None)
            if context is None:
                context = await asyncio.to_thread(_context, tls, self._ca_file)
            self._kept[digest] = context
            if len(self._kept) > _KEPT_MAX:
                self._kept.popitem(last=False)
        return context


def _trusting(ca: str, ca_file: str) -> ssl.SSLContext:
    """A context that trusts `ca` alone, or the system and `ca_file`."""
    context = ssl.create_default_context(cadata=ca or None)
    if ca:
        # The certificate of one server may stand for its authority, self-signed ones among them.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    elif ca_file:
        context.load_verify_locations(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _context(tls: Tls, ca_file: str) -> ssl.SSLContext:
    try:
        context = _trusting(tls.ca, ca_file)
    except (ssl.SSLError, ValueError, TypeError):
        raise InvalidArgumentError("tls.ca holds no certificate in PEM") from None
    if tls.cert:
        _show(context, tls)
    return context


def _show(context: ssl.SSLContext, tls: Tls) -> None:
    """Load the client's certificate. OpenSSL wants a file: one in memory, which never reaches a disk."""
    fd = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    with os.fdopen(fd, "wb") as file:
        file.write(f"{tls.cert}\n{tls.key}\n".encode())
        file.flush()
        try:
            context.load_cert_chain(f"/proc/self/fd/{fd}", password="")
        except ssl.SSLError as error:
            is_pair = error.reason == "KEY_VALUES_MISMATCH"
            reason = "do not belong together" if is_pair else "are no certificate and unencrypted key in PEM"
            raise InvalidArgumentError(f"tls.cert and tls.key {reason}") from None
