"""`taskforgectl context add` and `trust`: whom to believe is decided here, once."""

from __future__ import annotations

import re
import ssl
import sys
from dataclasses import replace
from pathlib import Path

import click

from taskforgectl import trust
from taskforgectl.address import is_loopback, split_address
from taskforgectl.commands.context.verbs import item_of, show
from taskforgectl.contexts import Context, ContextBook, Trust
from taskforgectl.errors import EXIT_CONFLICT, EXIT_DENIED, EXIT_UNREACHABLE, EXIT_USAGE, CliError
from taskforgectl.files import read_text
from taskforgectl.kinds import CONTEXT, FILE, FOLDER
from taskforgectl.options import LOCAL, Settings, Verb

__all__ = ["verbs"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@click.command("add", cls=Verb)
@click.argument("name")
@click.option("--address", default="", metavar="HOST:PORT", help="Where the daemon listens for gRPC.")
@click.option("--home", type=FOLDER, default="", metavar="DIR", help="Or: a home on this machine.")
@click.option(
    "--token", metavar="TOKEN", help="What to prove oneself with; - reads it from stdin. It is kept privately."
)
@click.option("--fingerprint", default="", metavar="SHA256", help="Trust the certificate with this fingerprint only.")
@click.option("--ca", type=FILE, default="", metavar="FILE", help="Trust certificates of the CA in this file.")
@click.option(
    "--cert", type=FILE, default="", metavar="FILE", help="Certificate of this client, where the daemon asks for one."
)
@click.option("--key", type=FILE, default="", metavar="FILE", help="Its private key.")
@click.option("-n", "--namespace", default="", metavar="NS", help="Namespace to work in.")
@click.option("--replace", "is_replacing", is_flag=True, help="Replace what has this name.")
@click.pass_obj
def _add(
    settings: Settings,
    *,
    name: str,
    address: str,
    home: str,
    token: str | None,
    fingerprint: str,
    ca: str,
    cert: str,
    key: str,
    namespace: str,
    is_replacing: bool,
) -> None:
    """Keep a daemon under a name.

    The daemon must answer with the right certificate, or, with --fingerprint or --ca, may be away. Without these its
    certificate is believed when a CA of this machine has signed it; else its fingerprint is shown, and on a terminal
    you are asked whether it is the one that the daemon's machine shows.

    On a terminal the token is asked for where --token is missing. Its place is not the command line, which other users
    of this machine see.
    """
    book = ContextBook()
    _check_name(book, name, is_replacing=is_replacing)
    if bool(address) == bool(home):
        raise CliError("give --address or --home", code=EXIT_USAGE)
    if home and (fingerprint or ca or cert or key):
        raise CliError("a home needs nothing to prove itself", hint="leave out all but --home", code=EXIT_USAGE)
    client = _client(cert, key)
    wanted = replace(client, fingerprint=trust.parse_fingerprint(fingerprint) if fingerprint else "", ca=_file(ca))
    tls = _decide(name, address, wanted) if address and not address.startswith("unix:") else None
    place = str(Path(home).expanduser().absolute()) if home else ""
    context = Context(name, address, place, _read_token(token, address), namespace, tls)
    book.put(context)
    show(settings, item_of(context, book.current()))
    if settings.output == "table" and book.current() != name:
        click.echo(f"\nuse it with `taskforgectl --context {name} …`, or `taskforgectl context use {name}`", err=True)


@click.command("trust", cls=Verb)
@click.argument("name", type=CONTEXT)
@click.option("--fingerprint", default="", metavar="SHA256", help="The certificate must have this one.")
@click.pass_obj
def _trust(settings: Settings, *, name: str, fingerprint: str) -> None:
    """Accept a daemon's new certificate. Everything else about the context stays.

    Without --fingerprint the new one is shown, and on a terminal you are asked.
    """
    book = ContextBook()
    known = book.get(name)
    if not known.address or known.address.startswith("unix:"):
        raise CliError(f"the context {name} has no address that TLS could protect", code=EXIT_USAGE)
    wanted = Trust(
        fingerprint=trust.parse_fingerprint(fingerprint) if fingerprint else "",
        cert=known.tls.cert if known.tls else "",
        key=known.tls.key if known.tls else "",
    )
    changed = replace(known, tls=_decide(name, known.address, wanted))
    book.put(changed)
    show(settings, item_of(changed, book.current()))


verbs = (_add, _trust)


def _check_name(book: ContextBook, name: str, *, is_replacing: bool) -> None:
    if name == LOCAL or _NAME.fullmatch(name) is None:
        hint = f"letters, digits, . _ -; {LOCAL} stands for no context"
        raise CliError(f"{name!r} cannot be the name of a context", hint=hint, code=EXIT_USAGE)
    if not is_replacing and book.has(name):
        hint = f"--replace replaces it, `taskforgectl context trust {name}` accepts a new certificate"
        raise CliError(f"there is a context {name} already", hint=hint, code=EXIT_CONFLICT)


def _file(name: str) -> str:
    return str(Path(name).expanduser().absolute()) if name else ""


def _client(cert: str, key: str) -> Trust:
    if bool(cert) != bool(key):
        raise CliError("--cert and --key belong together", code=EXIT_USAGE)
    return Trust(cert=_file(cert), key=_file(key))


def _read_token(token: str | None, address: str) -> str:
    """Answer the token to keep. Empty: none."""
    if token is None and address and sys.stdin.isatty():
        token = str(
            click.prompt("Token (empty: none is kept)", default="", hide_input=True, show_default=False, err=True)
        )
    return read_text("-").strip() if token == "-" else (token or "").strip()  # noqa: S105  stdin


# --- whom to believe -------------------------------------------------------------------------------------------------


def _decide(name: str, address: str, wanted: Trust) -> Trust | None:
    """Answer how the daemon is to prove itself from now on; None: it is plain, which only loopback may be.

    Raises:
        CliError: it does not prove itself, or nobody says that this certificate is the right one.
    """
    host, _ = split_address(address)
    trust.check_files(wanted)
    try:
        seen = trust.fetch(address, wanted)
    except CliError as error:
        if error.code == EXIT_UNREACHABLE and (wanted.fingerprint or wanted.ca):
            click.echo(f"{error.message}; it has to prove itself when it is first used", err=True)
            return wanted
        raise
    if seen is None:
        if is_loopback(host) and wanted == Trust():
            return None
        raise trust.not_tls(address)
    if not (wanted.fingerprint or wanted.ca):
        if trust.is_publicly_trusted(address, wanted):
            return wanted
        _ask(address, seen)
        wanted = replace(wanted, fingerprint=trust.fingerprint_of(seen))
    if problem := trust.explain(address, wanted, name):
        raise problem
    return replace(wanted, certificate=ssl.DER_cert_to_PEM_cert(seen)) if wanted.fingerprint else wanted


def _ask(address: str, certificate: bytes) -> None:
    """Let a person compare the fingerprint; without one, refuse."""
    fingerprint = trust.fingerprint_of(certificate)
    if not sys.stdin.isatty():
        hint = (
            "compare it with what `taskforgectl init --tls` shows on the daemon's machine, then add"
            f" --fingerprint {fingerprint}"
        )
        raise CliError(f"nothing says that the certificate of {address} is the right one", hint=hint, code=EXIT_DENIED)
    click.echo(f"{address} shows a certificate for {', '.join(trust.names_of(certificate)) or 'nobody'},", err=True)
    click.echo(f"which no CA vouches for. Its SHA-256 fingerprint is\n\n  {fingerprint}\n", err=True)
    click.confirm("Is this what `taskforgectl init --tls` shows on the daemon's machine?", abort=True, err=True)
