"""Accepts TLS connections so that each counts from its first byte on.

A server of asyncio shows a connection to nobody before its handshake is over: those that never finish one would not be
counted, and their number not bounded.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

import structlog

__all__ = ["Guest", "TlsServer", "bind"]

_log = structlog.get_logger(__name__)

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_S = 0.2
"""The kernel holds the connections meanwhile."""


class Guest(Protocol):
    """A connection's protocol, which was admitted and counted before there is a transport."""

    def abandon(self) -> None:
        """Be forgotten: the handshake has failed. Does nothing when the connection was made."""

    def as_protocol(self) -> asyncio.BaseProtocol:
        """Answer what asyncio talks to."""


class TlsServer:
    """A listening socket whose connections speak TLS; closes as `asyncio.Server` does.

    Args:
        sock: listens.
        context: of a server.
        admit: answers who receives the connection of a peer, None when it is refused.
        handshake_s: from the connection to the end of its handshake.
        shutdown_s: how long a peer may take to say goodbye.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        admit: Callable[[str], Guest | None],
        *,
        handshake_s: float,
        shutdown_s: float,
    ) -> None:
        sock.setblocking(False)
        self.sockets = (sock,)
        self._sock = sock
        self._context = context
        self._admit = admit
        self._handshake_s, self._shutdown_s = handshake_s, shutdown_s
        self._greeting: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept(), name="https")

    def close(self) -> None:
        """Stop listening, and cut what has not finished its handshake."""
        for task in (self._accepting, *self._greeting):
            task.cancel()
        self._sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(self._sock)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    _log.warning("https.cannot_accept", error=error.strerror)
                    await asyncio.sleep(_PAUSE_S)
                continue
            self._receive(sock, str(address[0]) if isinstance(address, tuple) else "")

    def _receive(self, sock: socket.socket, peer: str) -> None:
        guest = self._admit(peer)
        if guest is None:
            sock.close()
            return
        task = asyncio.create_task(self._greet(sock, guest), name="https handshake")
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)

    async def _greet(self, sock: socket.socket, guest: Guest) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                guest.as_protocol,
                sock,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_s,
                ssl_shutdown_timeout=self._shutdown_s,
            )
        except OSError as error:  # of TLS, of the peer, or no time left
            _log.debug("https.no_handshake", error=str(error))
        finally:
            guest.abandon()


async def bind(host: str, port: int, backlog: int) -> socket.socket:
    """Answer a listening socket.

    Raises:
        OSError: the address is taken or may not be used.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = found[0]
    return socket.create_server((str(address[0]), int(address[1])), family=family, backlog=backlog)
