"""The daemon's certificate: read from files, checked, and read again when the files change.

Both doors ask for it at each handshake, so a renewed certificate is in use from the next connection on. What cannot be
used is refused at the start, and later logged: the daemon then goes on with what it has.
"""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import structlog

from taskforged.config import Config
from taskforged.errors import FailedPreconditionError
from taskforged.lean import lazy

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
else:
    x509 = lazy("cryptography.x509")
    serialization = lazy("cryptography.hazmat.primitives.serialization")
    ec = lazy("cryptography.hazmat.primitives.asymmetric.ec")
    rsa = lazy("cryptography.hazmat.primitives.asymmetric.rsa")

__all__ = ["EXPIRES_SOON", "Certificates", "Identity", "find_certificates"]

_log = structlog.get_logger(__name__)

EXPIRES_SOON = timedelta(days=30)
"""How long before its end a certificate is warned of."""

_FILE_BYTES_MAX = 1 << 20
_RSA_BITS_MIN = 2048
_WARN_EVERY = timedelta(days=1)

_Key: TypeAlias = "rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey"


@dataclass(frozen=True, slots=True)
class Identity:
    """What the files held, all in PEM. `client_ca` is None where clients need no certificate."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime


class Certificates:
    """The certificate in force. May be asked from any thread.

    Args:
        cert: certificate chain, the daemon's own first.
        key: the private key of the first certificate.
        client_ca: whose certificates gRPC clients must have; None: they need none.

    Raises:
        FailedPreconditionError: a file is missing, open to others, malformed, expired, or does not fit the others.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        self.cert = cert
        self._key = key
        self._client_ca = client_ca
        self._lock = threading.Lock()
        self._seen = self._look()
        self._identity = self._load()
        self._warned = datetime.min.replace(tzinfo=UTC)
        self._served: tuple[Identity, ssl.SSLContext] | None = None

    @property
    def asks_clients(self) -> bool:
        """Whether gRPC clients must have a certificate."""
        return self._client_ca is not None

    def current(self) -> Identity:
        """Answer what the files hold, or what they held when they were last usable."""
        with self._lock:
            seen = self._look()
            if seen != self._seen:
                self._seen = seen  # before reading: what changes meanwhile is read again
                self._reload()
            return self._identity

    def _reload(self) -> None:
        try:
            self._identity = self._load()
        except FailedPreconditionError as error:
            _log.error("tls.kept_old", error=error.message, expires=self._identity.expires.isoformat())
        else:
            _log.info("tls.reloaded", cert=str(self.cert), expires=self._identity.expires.isoformat())

    def _look(self) -> tuple[object, ...]:
        """Answer what changes whenever a file does; also behind a symbolic link, as certbot has them."""
        return tuple(_state(path) for path in (self.cert, self._key, self._client_ca) if path is not None)

    def _load(self) -> Identity:
        chain = _read("cert", self.cert)
        certificate = _certificates("cert", self.cert, chain)[0]
        key = _read("key", self._key, private=True)
        if _public(_private_key(self._key, key)) != _public(certificate):
            raise _unusable(f"[tls] key {self._key} is not the key of the first certificate in {self.cert}")
        _check_time(self.cert, certificate)
        client_ca = None if self._client_ca is None else _read("client_ca", self._client_ca)
        if client_ca is not None and self._client_ca is not None:
            _certificates("client_ca", self._client_ca, client_ca)
        return Identity(chain, key, client_ca, certificate.not_valid_after_utc)

    def look_after(self, now: datetime | None = None) -> None:
        """Look for new files, and warn once a day when the end is near."""
        expires = self.current().expires
        now = now or datetime.now(UTC)
        if expires - now > EXPIRES_SOON or now - self._warned < _WARN_EVERY:
            return
        self._warned = now
        _log.warning(
            "tls.expires_soon" if expires > now else "tls.expired",
            cert=str(self.cert),
            expires=expires.isoformat(),
            mend="put a new certificate and key in place; no restart is needed",
        )

    def http_context(self) -> ssl.SSLContext:
        """Answer a context for a listener: each handshake changes over to the certificate in force."""
        outer = self._context()

        def on_hello(handshake: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _outer: ssl.SSLContext) -> None:
            handshake.context = self._context()

        outer.sni_callback = on_hello
        return outer

    def _context(self) -> ssl.SSLContext:
        identity = self.current()
        if self._served is None or self._served[0] is not identity:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols(["http/1.1"])
            try:
                context.load_cert_chain(self.cert, self._key)
            except (ssl.SSLError, OSError):  # changed again since it was read
                if self._served is None:
                    raise
                return self._served[1]
            self._served = (identity, context)
        return self._served[1]


def find_certificates(config: Config) -> Certificates | None:
    """Answer the certificate that the settings name, None when TLS is not configured.

    Raises:
        FailedPreconditionError: it cannot be used.
    """
    cert, key = config.file("tls", "cert"), config.file("tls", "key")
    if cert is None or key is None:
        return None
    return Certificates(cert, key, config.file("tls", "client_ca"))


# --- files -----------------------------------------------------------------------------------------------------------


def _state(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _unusable(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(message, reason="TLS_UNUSABLE")


def _read(name: str, path: Path, *, private: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            if private and path.stat().st_mode & 0o077:
                raise _unusable(f"[tls] {name} {path} is open to other users; close it with `chmod 600 {path}`")
            content = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        hint = "" if name == "client_ca" else "; `taskforgectl init --tls` makes a certificate"
        raise _unusable(f"[tls] {name} names {path}, which is not there{hint}") from None
    except OSError as error:
        raise _unusable(f"[tls] {name} {path} cannot be read: {error.strerror}") from None
    if len(content) > _FILE_BYTES_MAX:
        raise _unusable(f"[tls] {name} {path} is larger than {_FILE_BYTES_MAX:,} bytes")
    return content


def _certificates(name: str, path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise _unusable(f"[tls] {name} {path} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)") from None


def _private_key(path: Path, content: bytes) -> _Key:
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError:
        mend = "`openssl pkey -in KEY -out PLAIN` takes it off"
        raise _unusable(f"[tls] key {path} needs a passphrase, which nobody is there to give; {mend}") from None
    except ValueError:
        raise _unusable(f"[tls] key {path} holds no private key in PEM (-----BEGIN PRIVATE KEY-----)") from None
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _RSA_BITS_MIN:
        raise _unusable(f"[tls] key {path} is an RSA key of {key.key_size} bits; it needs {_RSA_BITS_MIN} at least")
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise _unusable(f"[tls] key {path} is of a kind that TLS clients often refuse; use EC (P-256) or RSA")
    return key


def _public(holder: _Key | x509.Certificate) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return holder.public_key().public_bytes(serialization.Encoding.DER, form)


def _check_time(path: Path, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc <= now:
        raise _unusable(
            f"[tls] cert {path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; put a new one in its place."
            " One of `taskforgectl init --tls` is made again after both files were moved away"
        )
    if certificate.not_valid_before_utc > now:
        raise _unusable(
            f"[tls] cert {path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only;"
            " check this machine's clock"
        )
