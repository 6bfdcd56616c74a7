"""The way out: every connection of the step `http` is made here, and held against the egress policy where it is made.

aiohttp resolves names, keeps them for some seconds, races the addresses against each other and pools connections. None
of that is trusted: `_Guard.open_socket` sees the address of every socket before it connects, which nothing can change
any more. A resolver hook would not do, since aiohttp does not ask it for addresses in URLs. The pool keys connections
by host and port, on which the verdict depends, and the policy does not change while the daemon runs.
"""

from __future__ import annotations

import base64
import errno
import ipaddress
import socket
import ssl
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from taskforged import __version__
from taskforged.egress import Address, Policy, Rule, Verdict, leaves, literal, plain_host
from taskforged.steps.http_request import Request
from taskforged.steps.tls_contexts import TlsContexts

__all__ = ["Denied", "Hop", "Outbound"]

_IDLE_S = 4.0  # node.js, a common server with a short patience, closes idle connections after 5 s

_Response: TypeAlias = AbstractAsyncContextManager[aiohttp.ClientResponse]


@dataclass(frozen=True, slots=True)
class Denied:
    """A connection that the policy does not allow; `address` is None when the name alone was enough."""

    host: str
    port: int
    address: Address | None
    verdict: Verdict

    def __str__(self) -> str:
        where = self.host if self.address is None or self.host == str(self.address) else f"{self.host} ({self.address})"
        return f"no connection to {where}, port {self.port}: {self.verdict.reason}; {self.verdict.remedy}"


@dataclass(slots=True)
class Hop:
    """One request's way to one host, and what became of the addresses on it."""

    host: str
    port: int
    via_proxy: bool
    is_tried: bool = False
    denied: list[Denied] = field(default_factory=list)

    @property
    def refusal(self) -> Denied | None:
        """Why there was no connection at all; None when an address was tried."""
        return self.denied[0] if self.denied and not self.is_tried else None


_HOP: ContextVar[Hop] = ContextVar("hop")
"""For whom a socket is opened. The tasks in which aiohttp races addresses inherit it."""


class Outbound:
    """Makes connections, within the policy. Proxies of the environment, cookies and `.netrc` are not used.

    Args:
        policy: what may be connected to.
        proxy: URL of the proxy that all connections go through, with its credentials; empty: none.
        no_proxy: rules for hosts that are connected to directly all the same.
        ca_file: path of further certificate authorities; empty: the system's alone.
        own_ports: answers the ports on which this daemon's control plane listens.
        connections_max: open at once; further requests wait.
        resolver: looks names up; None: the system's. For tests, which need a name to change its mind.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        proxy: str = "",
        no_proxy: Iterable[Rule] = (),
        ca_file: str = "",
        own_ports: Callable[[], Collection[int]] = tuple,
        connections_max: int = 256,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._guard = _Guard(policy or Policy(), own_ports)
        self._proxy = _Proxy(proxy, no_proxy) if proxy else None
        self._contexts = TlsContexts(ca_file)
        self._connections_max = connections_max
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the pool. Idempotent.

        Raises:
            FailedPreconditionError: the file of certificate authorities cannot be used.
        """
        if self._session is None:
            await self._contexts.start()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._connections_max,
                    keepalive_timeout=_IDLE_S,
                    socket_factory=self._guard.open_socket,
                    resolver=self._resolver,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(),  # none: one deadline per attempt
                headers={"User-Agent": f"taskforge/{__version__}"},
                trust_env=False,
            )

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @property
    def secrets(self) -> Collection[str]:
        """What must not be seen in any outcome: the proxy's password."""
        return self._proxy.secrets if self._proxy else ()

    def hop(self, url: URL) -> Hop | Denied:
        """The way to a URL, or why there is none."""
        via_proxy = self._proxy is not None and self._proxy.is_for(url)
        host, port = plain_host(url.raw_host or ""), url.port or 0
        denied = self._guard.judge(host, port, is_final=via_proxy)
        return Hop(host, port, via_proxy) if denied is None else denied

    async def send(self, hop: Hop, request: Request, data: object, *, skip: Collection[str] | None) -> _Response:
        """Prepare to send; the connection is made when the answer is entered."""
        if self._session is None:
            raise RuntimeError("start() was not called")
        _HOP.set(hop)
        headers, proxy, proxy_headers = request.headers, None, None
        if hop.via_proxy and self._proxy is not None:
            proxy, own = self._proxy.url, self._proxy.headers
            if request.url.scheme == "https":
                proxy_headers = dict(own)
            else:
                headers = headers.copy()
                headers.update(own)
        return self._session.request(
            request.method,
            request.url,
            headers=headers,
            data=data,
            allow_redirects=False,
            skip_auto_headers=skip,
            proxy=proxy,
            proxy_headers=proxy_headers,
            ssl=await self._context(hop, request),
        )

    async def _context(self, hop: Hop, request: Request) -> ssl.SSLContext | bool:
        """How the other side is verified: always a context of ours, since aiohttp's own trusts nobody, see `lean`."""
        if request.tls is not None:
            return await self._contexts.of(request.tls)
        is_encrypted = request.url.scheme == "https" or (hop.via_proxy and self.has_tls_proxy)
        return await self._contexts.default() if is_encrypted else True

    @property
    def has_tls_proxy(self) -> bool:
        """Whether the proxy is spoken to over TLS."""
        return self._proxy is not None and self._proxy.url.scheme == "https"


class _Guard:
    """Holds the policy against names before, and against addresses at the moment of the connection."""

    def __init__(self, policy: Policy, own_ports: Callable[[], Collection[int]]) -> None:
        self._policy = policy
        self._own_ports = own_ports
        self._judge_early = lru_cache(maxsize=1024)(self._judge)

    def judge(self, host: str, port: int, *, is_final: bool) -> Denied | None:
        """Judge what a URL says; a name whose address is to be found is judged again when it is known."""
        return self._judge(host, port, is_final=True) if is_final else self._judge_early(host, port)

    def _judge(self, host: str, port: int, *, is_final: bool = False) -> Denied | None:
        try:
            address = literal(host)
        except ValueError:
            reason, remedy = "not every program reads such an address alike", "write it in full, as in 127.0.0.1"
            return Denied(host, port, None, Verdict(is_allowed=False, reason=reason, remedy=remedy))
        if address is not None:
            verdict = self._policy.judge(host, port, address, is_own=is_final and self._is_own(address, port))
        else:
            verdict = self._policy.judge_name(host, port, is_final=is_final)
        return None if verdict.is_allowed else Denied(host, port, address, verdict)

    def open_socket(self, info: tuple[object, ...]) -> socket.socket:
        """Make a socket for an address, as `aiohttp.TCPConnector` asks for one.

        Raises:
            OSError: the policy does not allow it.
        """
        family, kind, protocol, _, target = info
        assert isinstance(family, int)
        assert isinstance(kind, int)
        assert isinstance(protocol, int)
        assert isinstance(target, tuple)
        hop = _HOP.get()  # unset is a bug, and ends the attempt
        if not hop.via_proxy:  # which the operator has named
            self._check(hop, ipaddress.ip_address(target[0]), target[1])
        hop.is_tried = True
        return socket.socket(family, kind, protocol)

    def _check(self, hop: Hop, address: Address, port: int) -> None:
        verdict = self._policy.judge(hop.host, port, address, is_own=self._is_own(address, port))
        if not verdict.is_allowed:
            hop.denied.append(Denied(hop.host, port, address, verdict))
            raise OSError(errno.EACCES, "the egress policy does not allow it")

    def _is_own(self, address: Address, port: int) -> bool:
        return port in self._own_ports() and any(map(_is_here, leaves(address)))


def _is_here(address: Address) -> bool:
    """Whether an address is one of this machine: only those can be bound."""
    with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


class _Proxy:
    """The proxy of the settings."""

    def __init__(self, url: str, no_proxy: Iterable[Rule]) -> None:
        parsed = URL(url)
        self.url = parsed.with_user(None)
        self.secrets = frozenset(filter(None, [parsed.password]))
        self.headers: Mapping[str, str] = {}
        if parsed.user is not None or parsed.password is not None:
            credentials = base64.b64encode(f"{parsed.user or ''}:{parsed.password or ''}".encode()).decode()
            self.headers = {"Proxy-Authorization": f"Basic {credentials}"}
            self.secrets |= {credentials}
        self._no_proxy = tuple(no_proxy)

    def is_for(self, url: URL) -> bool:
        """Whether requests to this URL go through it. Names are not resolved for that."""
        host, port = plain_host(url.raw_host or ""), url.port or 0
        try:
            address = literal(host)
        except ValueError:
            return True  # refused before it is used
        inner = () if address is None else leaves(address)
        return not any(r.names(host, port) or any(r.covers(a, port) for a in inner) for r in self._no_proxy)
