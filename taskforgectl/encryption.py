"""`taskforgectl init --tls`: the certificate, the settings that name it, and what another machine has to know."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taskforgectl import selfsigned, trust
from taskforgectl.address import is_loopback
from taskforgectl.home import Home
from taskforgectl.render.output import echo

__all__ = ["Encryption", "prepare"]

_CERT, _KEY = "tls/cert.pem", "tls/key.pem"
_LISTEN = "127.0.0.1:7420"


def prepare(home: Home, hosts: Sequence[str]) -> Encryption:
    """Make the certificate where it is missing.

    Raises:
        CliError: a host is none, or half of the files is there.
    """
    return Encryption(home, tuple(hosts), selfsigned.ensure(home.path / "tls", hosts))


@dataclass(frozen=True, slots=True)
class Encryption:
    """A home's certificate, and the hosts that were asked for."""

    home: Home
    hosts: tuple[str, ...]
    pair: selfsigned.Pair

    @property
    def fingerprint(self) -> str:
        """What a client pins."""
        return trust.fingerprint_of(self.pair.certificate)

    @staticmethod
    def complete(config: str) -> str:
        """Answer the template with the certificate in it."""
        for name, value in (("cert", _CERT), ("key", _KEY)):
            config = re.sub(rf'^# {name} = ""$', f'{name} = "{value}"', config, flags=re.MULTILINE)
        return config

    def report(self) -> dict[str, Any]:
        """Answer it for programs."""
        return {
            "fingerprint": self.fingerprint,
            "hosts": trust.names_of(self.pair.certificate),
            "context_add": self._context_add(),
        }

    def tell(self, *, config_made: bool) -> None:
        """Say what is left to be done, here and on the other machine."""
        settings = {} if config_made else self._settings()
        lines = [] if config_made or settings.get("tls", {}).get("cert") else [f'cert = "{_CERT}"', f'key = "{_KEY}"']
        if lines:
            echo(f"\nAdd to {self.home.config}:\n\n  [tls]\n  " + "\n  ".join(lines))
        if is_loopback(self._listen().rpartition(":")[0].strip("[]")):
            echo(f'\nTo be reached from other machines set [grpc] listen = "0.0.0.0:7420" in {self.home.config}.')
        names = trust.names_of(self.pair.certificate)
        until = f"{trust.expiry_of(self.pair.certificate):%Y-%m-%d}"
        echo(f"\nThe certificate is for {', '.join(names)}, and valid until {until}.")
        echo(f"Its SHA-256 fingerprint is\n\n  {self.fingerprint}")
        missing = [host for host in self.hosts if host.strip("[]").lower() not in names]
        if missing and not self.pair.made:
            echo(f"\nIt is not for {', '.join(missing)}: to have a new one, move {self.pair.cert.parent} away first.")
        echo(f"\nOn the other machine:\n\n  {self._context_add()}")

    def _context_add(self) -> str:
        host = self.hosts[0] if self.hosts else socket.gethostname()
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        port = self._listen().rpartition(":")[2]
        port = "7420" if port == "0" else port
        return f"taskforgectl context add NAME --address {host}:{port} --fingerprint {self.fingerprint} --token -"

    def _listen(self) -> str:
        set_here = self._settings().get("grpc", {}).get("listen", _LISTEN)
        return str(os.environ.get("TASKFORGE_GRPC_LISTEN") or set_here)

    def _settings(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return tomllib.loads(self.home.config.read_text())
        return {}
