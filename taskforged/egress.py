"""Where steps may connect to. Pure: a host, a port and an address come in, a verdict with its reason comes out.

The table of special ranges is our own. What `ipaddress` calls global changed between Python's releases, and 3.11 counts
NAT64, 6to4, multicast, site-local and v4-compatible addresses among it. An IPv6 address that stands for an IPv4 one is
judged as that one, so no envelope leads around a rule.

Names prove nothing: who owns a name says what it resolves to, and may say something else the next time. So verdicts are
about the address that is connected to, and only a rule that names one host or a narrow range opens what is closed.
`docs/egress.md` has the order of the rules as a table; `Policy.judge` is that table.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

__all__ = ["ALLOWED", "Address", "Policy", "Rule", "Verdict", "leaves", "literal", "parse_rule", "plain_host"]

Address: TypeAlias = IPv4Address | IPv6Address

_NAME = re.compile(r"([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of a list of rules.

    Attributes:
        text: as it was written.
        network: of a rule for addresses.
        host: of a rule for names; with a leading dot for all names below it; `*` matches everything.
        ports: both ends included; None: all.
    """

    text: str
    network: IPv4Network | IPv6Network | None = None
    host: str = ""
    ports: tuple[int, int] | None = None

    def names(self, host: str, port: int) -> bool:
        """Whether the rule is about this host, whatever its address."""
        return self.network is None and self._has(port) and self._fits(host)

    def covers(self, address: Address, port: int) -> bool:
        """Whether the rule is about this address."""
        return self.network is not None and self._has(port) and address in self.network

    @property
    def is_exact(self) -> bool:
        """One host, and not all below a domain: only such a rule opens what is closed."""
        return self.network is not None or not self.host.startswith((".", "*"))

    def _has(self, port: int) -> bool:
        return self.ports is None or self.ports[0] <= port <= self.ports[1]

    def _fits(self, host: str) -> bool:
        return self.host == "*" or (host.endswith(self.host) if self.host.startswith(".") else host == self.host)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a connection may be made.

    Attributes:
        is_allowed: it may.
        reason: why not; names the rule.
        remedy: the setting that would allow it.
    """

    is_allowed: bool
    reason: str = ""
    remedy: str = ""


ALLOWED = Verdict(is_allowed=True)


def parse_rule(text: str) -> Rule:
    """Read an address, a range, a host name or `*.domain`, each with `:port` or `:from-to` behind it.

    Raises:
        ValueError: it is none of these; the message says what is wrong.
    """
    if "://" in text:
        raise ValueError(f"{text!r} is a URL; a rule has the host alone, with a port where it matters")
    body, ports = _split(text.strip().lower())
    if body == "*":
        return Rule(text, host="*", ports=ports)
    if "/" in body or ":" in body or _ends_in_number(body):
        try:
            return Rule(text, network=ipaddress.ip_network(body), ports=ports)
        except ValueError as error:
            raise ValueError(f"{text!r} is no address and no range: {error}") from None
    name = body.removeprefix("*.").rstrip(".")
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise ValueError(
            f"{text!r} is no rule; write an address, a range such as 10.0.0.0/8, a host name or *.example.com,"
            " with a port behind a colon where it matters; a name in its ASCII form, xn--..."
        )
    return Rule(text, host=f".{name}" if body.startswith("*.") else name, ports=ports)


def _split(text: str) -> tuple[str, tuple[int, int] | None]:
    if text.startswith("["):
        body, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is no rule; write [fd00::/8]:443")
        return body, _ports(text, rest[1:]) if rest else None
    if text.count(":") != 1:
        return text, None  # none, or an IPv6 address
    body, _, rest = text.partition(":")
    return body, _ports(text, rest)


def _ports(text: str, ports: str) -> tuple[int, int]:
    found = _PORTS.fullmatch(ports)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high <= 65_535:
        raise ValueError(f"{text!r}: {ports!r} is no port and no range of ports; write 443 or 8000-8099")
    return low, high


# --- addresses -------------------------------------------------------------------------------------------------------


def plain_host(host: str) -> str:
    """A host as rules compare it: lower case, without the dot of the root."""
    return host.lower().removesuffix(".")


def literal(host: str) -> Address | None:
    """The address that a host in a URL spells; None when it is a name.

    Raises:
        ValueError: it spells an address in a way that programs understand differently, for example `127.1` or `0x7f.1`.
    """
    if ":" in host:
        return ipaddress.ip_address(host)
    return IPv4Address(host) if _ends_in_number(host) else None


def _ends_in_number(host: str) -> bool:
    """Such a host is an IPv4 address or nothing (URL standard, "ends in a number")."""
    return _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2].lower()) is not None


@lru_cache(maxsize=1024)
def leaves(address: Address) -> tuple[Address, ...]:
    """The addresses that an address stands for: itself, or what is wrapped in it."""
    if isinstance(address, IPv4Address):
        return (address,)
    bits = int(address)  # without the name of an interface, `%eth0`
    bare = IPv6Address(bits)
    for network, *shifts in _WRAPPING:
        if bare in network:
            return tuple(IPv4Address((bits ^ flip) >> shift & 0xFFFF_FFFF) for shift, flip in shifts)
    if bare in _COMPATIBLE and bits > 1:
        return (IPv4Address(bits),)
    if bits >> 32 & 0xFFFF_FFFF in _ISATAP:
        return bare, IPv4Address(bits & 0xFFFF_FFFF)
    return (bare,)


_NOT = (1 << 32) - 1
_WRAPPING: tuple[tuple[IPv6Network, tuple[int, int]] | tuple[IPv6Network, tuple[int, int], tuple[int, int]], ...] = (
    # range; for each IPv4 address in it how many bits lie behind it, and which are turned over
    (IPv6Network("::ffff:0:0/96"), (0, 0)),  # mapped, RFC 4291
    (IPv6Network("::ffff:0:0:0/96"), (0, 0)),  # translated, RFC 2765
    (IPv6Network("64:ff9b::/96"), (0, 0)),  # NAT64, RFC 6052
    (IPv6Network("2002::/16"), (80, 0)),  # 6to4, RFC 3056
    (IPv6Network("2001::/32"), (64, 0), (0, _NOT)),  # Teredo, RFC 4380: the server, and the client behind its NAT
)
_COMPATIBLE = IPv6Network("::/96")  # RFC 4291, without :: and ::1
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})  # RFC 5214, in any network


# --- what is special -------------------------------------------------------------------------------------------------

_GLOBAL_V6 = IPv6Network("2000::/3")

_METADATA = "an address of cloud metadata"
_CLOSED: tuple[tuple[IPv4Network | IPv6Network, str], ...] = tuple(
    (ipaddress.ip_network(text), what)
    for text, what in (
        ("169.254.169.254", _METADATA),
        ("169.254.170.2", _METADATA),  # AWS ECS
        ("100.100.100.200", _METADATA),  # Alibaba Cloud
        ("168.63.129.16", _METADATA),  # Azure
        ("192.0.0.192", _METADATA),  # Oracle Cloud
        ("fd00:ec2::/32", _METADATA),  # AWS: of instances, of containers
        ("fd00:42::42", _METADATA),  # Scaleway
        ("fd20:ce::254", _METADATA),  # Google Cloud
        ("0.0.0.0/8", "unspecified"),
        ("169.254.0.0/16", "link-local"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "reserved for documentation"),
        ("192.88.99.0/24", "a relay of 6to4"),
        ("198.18.0.0/15", "reserved for benchmarks"),
        ("198.51.100.0/24", "reserved for documentation"),
        ("203.0.113.0/24", "reserved for documentation"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("240.0.0.0/4", "reserved"),
        ("::", "unspecified"),
        ("64:ff9b:1::/48", "a translation to IPv4 whose form only its network knows"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
        ("2001::/23", "reserved for protocols"),
        ("2001:db8::/32", "reserved for documentation"),
        ("3fff::/20", "reserved for documentation"),
    )
)
"""Closed unless a rule names it. The first that fits says why; the rest of IPv6 outside of 2000::/3 is closed, too."""

_PRIVATE: tuple[tuple[IPv4Network | IPv6Network, str], ...] = tuple(
    (ipaddress.ip_network(text), what)
    for text, what in (
        ("127.0.0.0/8", "loopback"),
        ("10.0.0.0/8", "a private network"),
        ("172.16.0.0/12", "a private network"),
        ("192.168.0.0/16", "a private network"),
        ("100.64.0.0/10", "a network behind a carrier's NAT"),
        ("::1", "loopback"),
        ("fc00::/7", "a private network"),
        ("fec0::/10", "a private network"),
    )
)
"""Closed with `[egress] private = false`."""

_METADATA_NAMES = frozenset(
    {
        "instance-data",
        "instance-data.ec2.internal",
        "metadata",
        "metadata.azure.internal",
        "metadata.goog",
        "metadata.google.internal",
        "metadata.tencentyun.com",
    }
)
"""Names under which clouds serve metadata. A proxy may resolve them where we cannot see the address."""


@lru_cache(maxsize=1024)
def _closed(leaf: Address) -> tuple[IPv4Network | IPv6Network, str] | None:
    for network, what in _CLOSED:
        if leaf in network:
            return network, what
    if isinstance(leaf, IPv6Address) and leaf not in _GLOBAL_V6 and _private(leaf) is None:
        return IPv6Network((int(leaf) >> 125 << 125, 3)), "reserved"
    return None


@lru_cache(maxsize=1024)
def _private(leaf: Address) -> tuple[IPv4Network | IPv6Network, str] | None:
    return next(((network, what) for network, what in _PRIVATE if leaf in network), None)


# --- the verdict -----------------------------------------------------------------------------------------------------


class Policy:
    """What `[egress]` says.

    Args:
        allow: rules for what is open.
        deny: rules for what is closed; they win.
        private: whether loopback and private networks are open.
        only_allowed: whether everything is closed that `allow` does not name.
        ports: the only ones that are open; none: all.
    """

    def __init__(
        self,
        *,
        allow: Iterable[Rule] = (),
        deny: Iterable[Rule] = (),
        private: bool = True,
        only_allowed: bool = False,
        ports: Collection[int] = (),
    ) -> None:
        self._allow = tuple(allow)
        self._deny = tuple(deny)
        self._private = private
        self._only_allowed = only_allowed
        self._ports = frozenset(ports)

    def judge(self, host: str, port: int, address: Address, *, is_own: bool = False) -> Verdict:
        """Judge a connection to an address.

        Args:
            host: as `plain_host` answers it.
            port: of the connection.
            address: that is connected to.
            is_own: the daemon's control plane listens there.
        """
        inner = leaves(address)
        forms = {address, *inner}
        denying = next((r for r in self._deny if r.names(host, port) or any(r.covers(a, port) for a in forms)), None)
        if denying is not None:
            return _denied_by(denying)
        denials = (self._judge_leaf(host, port, leaf, is_own=is_own) for leaf in inner)
        return next(filter(None, denials), ALLOWED)

    def _judge_leaf(self, host: str, port: int, leaf: Address, *, is_own: bool) -> Verdict | None:
        naming = [r for r in self._allow if r.names(host, port) or r.covers(leaf, port)]
        exact = [r for r in naming if r.is_exact]
        return (
            self._judge_port(host, port, naming)
            or _judge_own(host, port, exact, is_own=is_own)
            or _judge_metadata(host, exact)
            or self._judge_range(host, leaf, exact)
            or self._judge_listed(host, naming)
        )

    def judge_name(self, host: str, port: int, *, is_final: bool) -> Verdict:
        """Judge a name whose address is not known.

        Args:
            host: as `plain_host` answers it; no address.
            port: of the connection.
            is_final: it never will be, since a proxy resolves it.
        """
        denying = next((r for r in self._deny if r.names(host, port)), None)
        if denying is not None:
            return _denied_by(denying)
        naming = [r for r in self._allow if r.names(host, port)]
        exact = [r for r in naming if r.is_exact]
        # Before the name is resolved, a rule for its address may still speak for it.
        may_be_named = not is_final and any(r.network is not None for r in self._allow)
        return (
            (None if may_be_named else self._judge_port(host, port, naming) or self._judge_listed(host, naming))
            or _judge_metadata(host, exact)
            or (self._judge_local_name(host, exact) if is_final else None)
            or ALLOWED
        )

    def _judge_port(self, host: str, port: int, naming: list[Rule]) -> Verdict | None:
        if not self._ports or port in self._ports or any(r.ports for r in naming):
            return None
        remedy = f'add it to [egress] ports, or "{_hosted(host, port)}" to [egress] allow'
        return _denied(f"port {port} is not among [egress] ports", remedy)

    def _judge_range(self, host: str, leaf: Address, exact: list[Rule]) -> Verdict | None:
        special = _closed(leaf)
        found = special or (None if self._private else _private(leaf))
        if found is None or any(_opens(rule, found[0]) for rule in exact):
            return None
        names = [str(leaf)] if ":" in host or host == str(leaf) else [str(leaf), host]
        remedy = "add " + " or ".join(f'"{name}"' for name in names) + " to [egress] allow"
        if special is not None:
            return _denied(f"{leaf} is {found[1]} ({found[0]})", remedy)
        reason = f"{leaf} is {found[1]} ({found[0]}), and [egress] private is false"
        return _denied(reason, f"{remedy}, or set [egress] private = true")

    def _judge_listed(self, host: str, naming: list[Rule]) -> Verdict | None:
        if naming or not self._only_allowed:
            return None
        reason = "[egress] only_allowed is true, and no rule of [egress] allow names it"
        return _denied(reason, f'add "{host}" to [egress] allow')

    def _judge_local_name(self, host: str, exact: list[Rule]) -> Verdict | None:
        if self._private or exact or not (host == "localhost" or host.endswith(".localhost")):
            return None
        return _denied(f"{host} is loopback, and [egress] private is false", f'add "{host}" to [egress] allow')


def _opens(rule: Rule, special: IPv4Network | IPv6Network) -> bool:
    """A host is opened by its name; an address by a range inside the special one: 0.0.0.0/0 is no intention."""
    return rule.network is None or rule.network.prefixlen >= special.prefixlen


def _judge_own(host: str, port: int, exact: list[Rule], *, is_own: bool) -> Verdict | None:
    if not is_own or any(r.ports == (port, port) for r in exact):
        return None
    remedy = f'add "{_hosted(host, port)}", with the port, to [egress] allow'
    return _denied("it is the control plane of this daemon", remedy)


def _judge_metadata(host: str, exact: list[Rule]) -> Verdict | None:
    if host not in _METADATA_NAMES or any(r.network is None for r in exact):
        return None
    return _denied(f"{host} is a name of cloud metadata", f'add "{host}" to [egress] allow')


def _hosted(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _denied_by(rule: Rule) -> Verdict:
    return _denied(f'the rule "{rule.text}" of [egress] deny closes it', "take that rule out")


def _denied(reason: str, remedy: str) -> Verdict:
    return Verdict(is_allowed=False, reason=reason, remedy=remedy)
