"""Senders that ask and ask on one connection and never read an answer: they are held back, and nobody else is."""

from __future__ import annotations

import asyncio
import os
import select
import socket

import pytest
from switchboard import Board

IS_BIG = "TASKFORGE_TEST_CYCLES" in os.environ
SENDERS = 8 if IS_BIG else 4
GROWTH_MAX = 64 << 20
STILL_S = 1.0
"""Whoever could send nothing for so long is held back."""


class Deaf:
    """One connection full of requests, whose answers stay where they are."""

    def __init__(self, board: Board) -> None:
        host, port = board.daemon.http.removeprefix("http://").split(":")
        self._place = (host, int(port))
        head = f"POST /hooks/{board.namespace}/nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"
        self._requests = (head.encode() + b"{}") * 500
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)
        self.sent = 0

    async def fill(self) -> None:
        """Send until nothing more is taken."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, self._place)
        while True:
            try:
                async with asyncio.timeout(STILL_S):
                    await loop.sock_sendall(self._socket, self._requests)
            except TimeoutError:
                return
            self.sent += len(self._requests)

    async def cut(self) -> None:
        """Wait until the daemon has ended the connection, without reading anything of it."""
        watched = select.poll()
        watched.register(self._socket, select.POLLHUP)
        while not watched.poll(0):
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """Close it."""
        self._socket.close()


@pytest.mark.timeout(300 if IS_BIG else 120)
async def test_senders_that_never_read_are_held_back_and_hold_nobody_up(board: Board) -> None:
    await board.apply(
        "name: hook\non: {in: {webhook: {path: in, verify: {scheme: none}}}}\nsteps: [{id: a, transform: 1}]\n"
    )
    assert (await board.post("in")).status == 202
    before = board.daemon.resident
    senders = [Deaf(board) for _ in range(SENDERS)]
    try:
        async with asyncio.timeout(100):
            await asyncio.gather(*(one.fill() for one in senders))
        assert all(one.sent > 0 for one in senders)
        grown = board.daemon.resident - before
        assert grown < GROWTH_MAX, "what is not read is kept in memory"
        answer = await board.post("in")
        assert answer.status == 202
        assert await board.output(answer.body["run_ids"][0]) is None
        if IS_BIG:  # ten seconds after the last answer that fits; with a shorter limit: test_webhook.py
            async with asyncio.timeout(200):
                await asyncio.gather(*(one.cut() for one in senders))
    finally:
        for one in senders:
            one.close()
    print(f"{SENDERS} senders: {sum(one.sent for one in senders) >> 10:,} KiB taken, {grown >> 20} MiB more")
