"""HOST:PORT."""

from __future__ import annotations

import ipaddress

from taskforgectl.errors import EXIT_USAGE, CliError

__all__ = ["is_loopback", "split_address"]


def split_address(address: str) -> tuple[str, int]:
    """Answer host and port.

    Raises:
        CliError: it is no HOST:PORT.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not port.isascii() or int(port) > 65_535:
        hint = "use host:port, for example 127.0.0.1:7420, or unix:/path/to/taskforged.sock"
        raise CliError(f"{address!r} is not an address", hint=hint, code=EXIT_USAGE)
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Answer whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
