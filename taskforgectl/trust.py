"""Who answers at an address: looks at certificates with `ssl`, since gRPC neither shows them nor says what is wrong."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from taskforgectl.address import split_address
from taskforgectl.contexts import Trust
from taskforgectl.errors import EXIT_DENIED, EXIT_UNREACHABLE, EXIT_USAGE, CliError

__all__ = [
    "Channel",
    "channel_of",
    "check_files",
    "expiry_of",
    "explain",
    "fetch",
    "fingerprint_of",
    "is_publicly_trusted",
    "names_of",
    "not_tls",
    "parse_fingerprint",
]

_PROBE_S = 5.0
_FINGERPRINT = re.compile(r"(?:sha-?256[:=])?((?:[0-9a-f]{2}:?){32})", re.IGNORECASE)

# X509_V_ERR_… of OpenSSL
_EXPIRED, _NOT_YET = 10, 9
_OTHER_NAME = {62, 64}


@dataclass(frozen=True, slots=True)
class Channel:
    """What gRPC needs to know: roots in PEM (None: its own), the client's key and chain, and the name to expect."""

    roots: bytes | None
    key: bytes | None
    chain: bytes | None
    server_name: str = ""


# --- fingerprints ----------------------------------------------------------------------------------------------------


def parse_fingerprint(text: str) -> str:
    """Answer `AB:CD:…` for a SHA-256 fingerprint in any usual form.

    Raises:
        CliError: it is none.
    """
    found = _FINGERPRINT.fullmatch(text.strip())
    if found is None:
        hint = "64 hexadecimal digits, with or without colons, as `taskforgectl init --tls` shows them"
        raise CliError(f"{text!r} is not a SHA-256 fingerprint", hint=hint, code=EXIT_USAGE)
    return _colons(found[1].replace(":", ""))


def fingerprint_of(certificate: bytes) -> str:
    """Answer the fingerprint of a certificate in DER."""
    return _colons(hashlib.sha256(certificate).hexdigest())


def _colons(digits: str) -> str:
    return ":".join(digits[at : at + 2] for at in range(0, 64, 2)).upper()


def names_of(certificate: bytes) -> list[str]:
    """Answer the names and addresses for which a certificate in DER is good."""
    from cryptography import x509  # noqa: PLC0415  few calls need it, and it takes a while to load

    parsed = x509.load_der_x509_certificate(certificate)
    try:
        found = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [str(one.value) for one in parsed.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    addresses = found.get_values_for_type(x509.IPAddress)
    return [*found.get_values_for_type(x509.DNSName), *map(str, addresses)]


def expiry_of(certificate: bytes) -> dt.datetime:
    """Answer until when a certificate in DER is valid."""
    from cryptography import x509  # noqa: PLC0415

    return x509.load_der_x509_certificate(certificate).not_valid_after_utc


# --- a handshake -----------------------------------------------------------------------------------------------------


def fetch(address: str, trust: Trust | None = None) -> bytes | None:
    """Answer the certificate of who listens at HOST:PORT in DER, unverified; None: whoever it is does not speak TLS.

    Raises:
        CliError: nobody answers, or the client's certificate cannot be used.
    """
    context = _unverified()
    _load_client(context, trust)
    try:
        return _shake(address, context)[0]
    except ssl.SSLError:
        return None
    except OSError as error:
        hint = "is the daemon running, does [grpc] listen let it be reached from here, is a firewall between?"
        text = f"nobody answers at {address}: {_reason(error)}"
        raise CliError(text, hint=hint, code=EXIT_UNREACHABLE) from None


def check_files(trust: Trust) -> None:
    """Read what the trust names.

    Raises:
        CliError: a file is missing or does not hold what it should.
    """
    _load_client(_verified(trust), trust)


def is_publicly_trusted(address: str, client: Trust) -> bool:
    """Answer whether the certificate at HOST:PORT is good for this machine's own CAs and for this host."""
    context = _verified(Trust())
    _load_client(context, client)
    try:
        _shake(address, context)
    except OSError:
        return False
    return True


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # whoever it is: the fingerprint is compared
    context.set_alpn_protocols(["h2"])
    return context


def _verified(trust: Trust) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=_read(trust.ca).decode("latin-1") if trust.ca else None)
    except (ssl.SSLError, ValueError):
        raise CliError(f"{trust.ca} holds no certificate in PEM", code=EXIT_USAGE) from None
    context.set_alpn_protocols(["h2"])
    return context


def _load_client(context: ssl.SSLContext, trust: Trust | None) -> None:
    if trust is None or not trust.cert:
        return
    try:
        context.load_cert_chain(trust.cert, trust.key or None, password="")
    except (ssl.SSLError, OSError, ValueError):
        text = f"{trust.cert} and {trust.key} are not a certificate and its key without a passphrase, in PEM"
        raise CliError(text, code=EXIT_USAGE) from None


def _shake(address: str, context: ssl.SSLContext) -> tuple[bytes, bool, bool]:
    """Answer the certificate in DER, whether HTTP/2 is spoken, and whether this client was let in."""
    host, port = split_address(address)
    with (
        socket.create_connection((host, port), timeout=_PROBE_S) as raw,
        context.wrap_socket(raw, server_hostname=host) as wire,
    ):
        certificate = wire.getpeercert(binary_form=True) or b""
        speaks_http2 = wire.selected_alpn_protocol() == "h2"
        return certificate, speaks_http2, not speaks_http2 or _is_let_in(wire)


def _is_let_in(wire: ssl.SSLSocket) -> bool:
    """Whether the server begins to speak, which it does once it accepts the client's certificate, or needs none."""
    try:
        return bool(wire.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}", code=EXIT_USAGE) from None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


# --- what gRPC is told -----------------------------------------------------------------------------------------------


def channel_of(address: str, trust: Trust) -> Channel:
    """Answer what gRPC needs to know.

    Raises:
        CliError: a file cannot be read, or the daemon does not show the certificate that it should.
    """
    key, chain = (_read(trust.key), _read(trust.cert)) if trust.cert else (None, None)
    if not trust.fingerprint:
        return Channel(_read(trust.ca) if trust.ca else _system_roots(), key, chain)
    certificate = ssl.PEM_cert_to_DER_cert(trust.certificate) if trust.certificate else fetch(address, trust)
    if certificate is None:
        raise not_tls(address)
    if fingerprint_of(certificate) != trust.fingerprint:
        raise _changed(address, trust.fingerprint, fingerprint_of(certificate))
    # It alone is trusted, under a name of its own: a pin says which certificate, not for which host.
    name = next(iter(names_of(certificate)), "").replace("*", "any")
    return Channel(ssl.DER_cert_to_PEM_cert(certificate).encode(), key, chain, name)


def _system_roots() -> bytes | None:
    path = ssl.get_default_verify_paths().cafile
    return Path(path).read_bytes() if path else None


# --- what went wrong -------------------------------------------------------------------------------------------------


def explain(address: str, trust: Trust | None, name: str = "") -> CliError | None:
    """Answer why no connection comes about, None when it is not for reasons of TLS.

    Args:
        address: HOST:PORT.
        trust: None: the connection was plain.
        name: of the context.
    """
    try:
        return _explain_plain(address) if trust is None else _explain_tls(address, trust, name)
    except CliError as error:
        return error if error.code != EXIT_UNREACHABLE else None


def _explain_plain(address: str) -> CliError | None:
    if fetch(address) is None:
        return None
    hint = f"`taskforgectl context add NAME --address {address}` shows its certificate and keeps what you trust"
    return CliError(f"{address} speaks TLS, and nothing says which certificate to trust", hint=hint, code=EXIT_DENIED)


def _explain_tls(address: str, trust: Trust, name: str) -> CliError | None:
    context = _unverified() if trust.fingerprint else _verified(trust)
    _load_client(context, trust)
    try:
        certificate, speaks_http2, is_let_in = _shake(address, context)
    except ssl.SSLCertVerificationError as error:
        return _unverifiable(address, trust, error)
    except ssl.SSLError as error:
        return _refused(address, trust) if "ALERT" in (error.reason or "") else not_tls(address)
    except OSError:
        return None
    if trust.fingerprint and fingerprint_of(certificate) != trust.fingerprint:
        return _changed(address, trust.fingerprint, fingerprint_of(certificate), name)
    if not speaks_http2:
        hint = "give the address of [grpc] listen, by default port 7420; webhooks have another one"
        return CliError(f"{address} speaks TLS but not gRPC", hint=hint, code=EXIT_UNREACHABLE)
    if not is_let_in:
        return _refused(address, trust)
    return _out_of_time(address, certificate)


def not_tls(address: str) -> CliError:
    """Answer the refusal of a plain connection."""
    hint = "set [tls] cert and key on its machine (`taskforgectl init --tls`), or come through SSH and a plain context"
    return CliError(f"{address} does not speak TLS", hint=hint, code=EXIT_UNREACHABLE)


def _changed(address: str, expected: str, seen: str, name: str = "NAME") -> CliError:
    text = (
        f"THE CERTIFICATE OF {address} HAS CHANGED. It was renewed, or somebody stands between you and the daemon.\n"
        f"  expected  {expected}\n"
        f"  seen      {seen}"
    )
    hint = (
        "nothing was sent. Ask for the fingerprint on the daemon's machine (`taskforgectl init --tls` shows it again);"
        f" when it is the one seen: taskforgectl context trust {name or 'NAME'} --fingerprint {seen}"
    )
    return CliError(text, hint=hint, code=EXIT_DENIED)


def _unverifiable(address: str, trust: Trust, error: ssl.SSLCertVerificationError) -> CliError:
    certificate = fetch(address, trust)
    if certificate is not None and error.verify_code in _OTHER_NAME:
        names = ", ".join(names_of(certificate)) or "no name"
        hint = f"it is for {names}: add the context with an address that has one of these names"
        return CliError(f"the certificate of {address} is for another host", hint=hint, code=EXIT_DENIED)
    if certificate is not None and error.verify_code in {_EXPIRED, _NOT_YET}:
        return _out_of_time(address, certificate) or _unsigned(address, trust)
    return _unsigned(address, trust)


def _unsigned(address: str, trust: Trust) -> CliError:
    signer = f"no CA in {trust.ca}" if trust.ca else "no CA that this machine trusts"
    hint = "give its CA with --ca, or pin it with --fingerprint: `taskforgectl context add --help`"
    return CliError(f"the certificate of {address} is signed by {signer}", hint=hint, code=EXIT_DENIED)


def _refused(address: str, trust: Trust) -> CliError:
    if not trust.cert:
        hint = "add the context with --cert and --key; [tls] client_ca on its machine says whose are accepted"
        return CliError(f"{address} asks for a client certificate", hint=hint, code=EXIT_DENIED)
    hint = "it must be valid now and of a CA in [tls] client_ca on the daemon's machine"
    return CliError(f"{address} does not accept the client certificate {trust.cert}", hint=hint, code=EXIT_DENIED)


def _out_of_time(address: str, certificate: bytes) -> CliError | None:
    from cryptography import x509  # noqa: PLC0415  few calls need it, and it takes a while to load

    parsed = x509.load_der_x509_certificate(certificate)
    now = dt.datetime.now(dt.UTC)
    if parsed.not_valid_after_utc < now:
        text = f"the certificate of {address} expired on {parsed.not_valid_after_utc:%Y-%m-%d}"
        hint = "renew it on its machine; the daemon takes a new file without a restart"
    elif parsed.not_valid_before_utc > now:
        text = f"the certificate of {address} is valid from {parsed.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only"
        hint = "check the clocks of both machines"
    else:
        return None
    return CliError(text, hint=hint, code=EXIT_DENIED)
