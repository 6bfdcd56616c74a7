"""A certificate that a daemon signs itself, for those who have no CA: its clients pin it by its fingerprint."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskforgectl.errors import EXIT_CONFLICT, EXIT_USAGE, CliError

__all__ = ["Pair", "ensure"]

_DAYS = 825
"""The longest that no platform refuses: Apple's bound for a certificate of a private CA."""

_NAME = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key as files.

    Attributes:
        made: whether they were made just now.
        certificate: in DER.
    """

    cert: Path
    key: Path
    made: bool
    certificate: bytes


def ensure(folder: Path, hosts: Sequence[str]) -> Pair:
    """Make `cert.pem` and `key.pem` in a folder, unless both are there.

    Args:
        folder: made with mode 0700 where it is missing.
        hosts: names and addresses by which clients come; this machine's own are added.

    Raises:
        CliError: one of the two is there alone, or a host is none.
    """
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = [_host(one) for one in hosts]
    there = [path for path in (cert, key) if path.exists()]
    if len(there) == 1:
        hint = f"put the other one back, or move {there[0].name} away and run this again"
        raise CliError(f"{there[0]} is there alone; certificate and key belong together", hint=hint, code=EXIT_CONFLICT)
    if not there:
        folder.mkdir(mode=0o700, exist_ok=True)
        certificate, private = _make([*names, *_own_names()])
        _write(key, private, 0o600)
        _write(cert, certificate, 0o644)
    try:
        return Pair(cert, key, not there, ssl.PEM_cert_to_DER_cert(_first(cert.read_text())))
    except ValueError:
        raise CliError(f"{cert} holds no certificate in PEM", hint="move it and its key away") from None


def _first(text: str) -> str:
    return text[: text.find(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)].strip()


def _host(text: str) -> str:
    """Answer a host as certificates have it.

    Raises:
        CliError: it is none.
    """
    host = text.strip("[]").lower()
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        host = host.removesuffix(".").encode("idna").decode() if not host.isascii() else host.removesuffix(".")
    except UnicodeError:
        host = ""
    if _NAME.fullmatch(host) is None:
        hint = "a name or an address without a port, for example tf.example.com or 192.168.1.5"
        raise CliError(f"--host {text!r} is not a host", hint=hint, code=EXIT_USAGE)
    return host


def _own_names() -> list[str]:
    name = socket.gethostname().lower()
    return [*([name] if _NAME.fullmatch(name) else []), "localhost", "127.0.0.1", "::1"]


def _make(hosts: Sequence[str]) -> tuple[bytes, bytes]:
    """Answer certificate and key in PEM."""
    from cryptography import x509  # noqa: PLC0415  takes a while to load, and few calls need it
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "taskforged")])
    now = dt.datetime.now(dt.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = {part: part == "digital_signature" for part in _USAGES}
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))  # clocks differ
        .not_valid_after(now + dt.timedelta(days=_DAYS - 1))
        .add_extension(x509.SubjectAlternativeName([_general(one) for one in dict.fromkeys(hosts)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(identifier.digest, None, None), critical=False)
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return builder.sign(key, hashes.SHA256()).public_bytes(pem), private


_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _general(host: str) -> Any:
    from cryptography import x509  # noqa: PLC0415

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise CliError(f"{path} was made meanwhile", hint="run this again", code=EXIT_CONFLICT) from None
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
