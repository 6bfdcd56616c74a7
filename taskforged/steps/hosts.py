"""Where something may be sent to: patterns of hosts, in their one form, and what they fit.

A pattern is a host name, an address or `*.name`, which fits every name below it and not the name itself, each with an
optional `:port`; without one it fits every port. IPv6 addresses stand in brackets.
"""

from __future__ import annotations

import ipaddress
import re

__all__ = ["fits", "normal_pattern"]

_PATTERN = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:]+)(?::([1-9][0-9]{0,4}))?")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:\*\.)?(?!.*\.[0-9]+$)(?![0-9]+$){_LABEL}(?:\.{_LABEL})*")
_NAME_MAX = 255


def normal_pattern(text: str) -> str:
    """Answer a pattern in its one form: lower case, addresses written shortest.

    Raises:
        ValueError: it is none; names of other scripts are to be written as `xn--`.
    """
    lower = text.strip().lower()
    if lower.count(":") > 1 and "[" not in lower:
        lower = f"[{lower}]"
    found = _PATTERN.fullmatch(lower)
    host = None if found is None else _normal_host(found[1])
    if found is None or host is None or int(found[2] or 1) > 65535:
        raise ValueError("must be a host name, an address or *.name, with or without :port")
    return host if found[2] is None else f"{host}:{found[2]}"


def _normal_host(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        name = text.removesuffix(".")
        return name if _NAME.fullmatch(name) and len(name) <= _NAME_MAX else None
    return f"[{address}]" if address.version == 6 else str(address)


def fits(pattern: str, host: str, port: int) -> bool:
    """Whether a pattern in its one form fits a host, named as in a URL with or without brackets, and a port."""
    found = _PATTERN.fullmatch(pattern)
    name = _normal_host(f"[{host}]" if ":" in host and "[" not in host else host.lower())
    if found is None or name is None or (found[2] and int(found[2]) != port):
        return False
    wanted = found[1]
    return name.endswith(wanted[1:]) if wanted.startswith("*.") else name == wanted
