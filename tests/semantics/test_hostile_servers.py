"""Runs that call servers which break, stall, lie or never end: each has an end and a reason, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon
from raw_server import Request, Server, Servers, answer
from switchboard import Board, state

CALLS = """
name: calls
steps:
  - id: call
    http: {method: POST, url: "${{ input.url }}", follow_redirects: 5}
    timeout: TIMEOUT
    retry: {max_attempts: 2, delay: 10ms, jitter: none}
output: "${{ steps.call.output.body }}"
"""
PATIENT = CALLS.replace("TIMEOUT", "60s")
HURRIED = CALLS.replace("calls", "hurried").replace("TIMEOUT", "1s")

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
PIECE = b"1," * 16_384
GROWTH_MAX = 64 << 20

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, bool | None]]


def sent(data: bytes, then: str = "close") -> Script:
    """Send this much, and then close, reset or stall."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(data)
        await writer.drain()
        if then == "stall":
            await reader.read()
        if then == "close":
            writer.close()
            await writer.wait_closed()
        return True

    return script


def endless(head: bytes, piece: bytes, pause_s: float = 0) -> Script:
    """Send the same thing until the other side has gone."""

    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return script


ONCE_MORE = ("DEAD", 2)
NEVER_AGAIN = ("FAILED", 1)
BROKE, TOO_SLOW = ("network", *ONCE_MORE), ("timeout", *ONCE_MORE)
TOO_LARGE, NO_JSON = ("response_too_large", *NEVER_AGAIN), ("invalid_json", *NEVER_AGAIN)
NO_ANSWER = "closed the connection without an answer|connection broke"
NO_CHUNKS = "the answer broke off|the answer is no HTTP"  # the latter when head and body came at once

FAULTS: dict[str, tuple[Script | bytes, tuple[str, str, int], str]] = {
    "reset": (sent(b"", "reset"), BROKE, NO_ANSWER),
    "reset-in-the-head": (sent(HEAD, "reset"), BROKE, NO_ANSWER),
    "reset-in-the-body": (sent(HEAD + b"Content-Length: 9\r\n\r\n[1,", "reset"), BROKE, "broke"),
    "stall": (sent(b"", "stall"), TOO_SLOW, "no complete answer within 1 s"),
    "stall-in-the-head": (sent(HEAD, "stall"), TOO_SLOW, "no complete answer within 1 s"),
    "stall-in-the-body": (sent(CHUNKED + b"2\r\n[1\r\n", "stall"), TOO_SLOW, "no complete answer within 1 s"),
    "trickle": (endless(HEAD + b"Content-Length: 99999\r\n\r\n", b"1", 0.05), TOO_SLOW, "no complete answer"),
    "trickling-head": (endless(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"1", 0.05), TOO_SLOW, "no complete answer"),
    "length-too-long": (sent(HEAD + b"Content-Length: 99\r\n\r\n[1]"), BROKE, "the answer broke off"),
    "length-too-short": (sent(HEAD + b"Content-Length: 2\r\n\r\n[1, 2, 3]"), BROKE, "the answer is no HTTP"),
    "length-of-none": (sent(HEAD + b"Content-Length: -1\r\n\r\n[1]"), BROKE, "the answer is no HTTP"),
    "two-lengths": (sent(HEAD + b"Content-Length: 3\r\nContent-Length: 9\r\n\r\n[1]"), BROKE, "the answer is no HTTP"),
    "endless-body": (endless(CHUNKED, b"8000\r\n" + PIECE + b"\r\n"), TOO_LARGE, "more than 1,048,576 bytes"),
    "endless-line": (endless(b"HTTP/1.1 200 OK\r\nX-Long: ", PIECE), BROKE, "or its head is too long"),
    "endless-headers": (endless(b"HTTP/1.1 200 OK\r\n", b"X-Many: a\r\n" * 1000), BROKE, "or its head is too long"),
    "endless-trailers": (endless(CHUNKED + b"0\r\n", b"X-Many: a\r\n" * 1000), BROKE, NO_CHUNKS),
    "endless-continue": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10, 0.01), TOO_SLOW, "no complete answer"),
    "broken-chunk": (sent(CHUNKED + b"zz\r\n[1]\r\n"), BROKE, NO_CHUNKS),
    "chunk-cut-off": (sent(CHUNKED + b"99\r\n[1]"), BROKE, "the answer broke off"),
    "redirects": (
        answer(302, headers=["Location: /redirects", "Connection: close"]),
        ("too_many_redirects", *NEVER_AGAIN),
        "more than 5 redirects",
    ),
    "gzip-bomb": (
        answer(body=gzip.compress(b"1" * 50_000_000), headers=["Content-Encoding: gzip", "Connection: close"]),
        TOO_LARGE,
        "more than 1,048,576 bytes",
    ),
    "no-gzip": (
        answer(body=b"[1]", headers=["Content-Encoding: gzip", "Connection: close"]),
        BROKE,
        "not encoded as it says",
    ),
    "deep": (answer(body=b"[" * 1_000_000, headers=["Connection: close"]), NO_JSON, "nested deeper than 64 levels"),
    "deep-and-closed": (
        answer(body=b"[" * 500_000 + b"]" * 500_000, headers=["Connection: close"]),
        NO_JSON,
        "nested deeper than 64 levels",
    ),
    "huge": (
        answer(body=b"[" + b"1," * 10_000_000 + b"1]", headers=["Connection: close"]),
        TOO_LARGE,
        "more than 1,048,576 bytes",
    ),
}
HURRY = {name for name, (_, what, _) in FAULTS.items() if what == TOO_SLOW}


def play(request: Request) -> Script | bytes:
    """What the server answers to a path."""
    fault = FAULTS.get(request.target[1:])
    return answer(body=b'"fine"', headers=["Connection: close"]) if fault is None else fault[0]


@pytest.fixture
async def hostile() -> AsyncIterator[Server]:
    async with Servers() as servers:
        yield await servers.start(play)


def sockets(daemon: Daemon) -> int:
    """How many the daemon has."""
    links = [os.readlink(one) for one in Path(f"/proc/{daemon.pid}/fd").iterdir() if one.is_symlink()]
    return sum(link.startswith("socket:") for link in links)


async def call(board: Board, server: Server, name: str, workflow: str = "calls") -> Any:
    """The end of a run that calls the server."""
    run = (await board("StartRun", workflow=workflow, input_json=json.dumps({"url": f"{server.url}/{name}"}))).run
    return await board.ended(run.id)


@pytest.mark.timeout(180)
async def test_whatever_a_server_does_the_run_ends_and_says_why(board: Board, hostile: Server) -> None:
    for source in (PATIENT, HURRIED):
        await board.apply(source)
    assert state(await call(board, hostile, "fine")) == "SUCCEEDED"
    daemon, open_before, before = board.daemon, sockets(board.daemon), board.daemon.resident
    ends = await asyncio.gather(
        *(call(board, hostile, name, "hurried" if name in HURRY else "calls") for name in FAULTS)
    )
    found = {name: (run.error.code, state(run), run.error.attempts) for name, run in zip(FAULTS, ends, strict=True)}
    assert found == {name: what for name, (_, what, _) in FAULTS.items()}
    for (name, (_, _, words)), run in zip(FAULTS.items(), ends, strict=True):
        assert any(word in run.error.message for word in words.split("|")), f"{name}: {run.error.message}"
    asked = Counter(request.target[1:] for request in hostile.requests)
    for name, run in zip(FAULTS, ends, strict=True):
        most = 6 if name == "redirects" else run.error.attempts
        assert asked[name] == most or (name in HURRY and asked[name] < most), f"{name}: asked {asked[name]} times"
    assert json.loads((await call(board, hostile, "fine")).output_json) == "fine"
    async with asyncio.timeout(30):
        while sockets(daemon) > open_before or not all(task.done() for task in hostile.tasks):
            await asyncio.sleep(0.05)
    assert daemon.resident - before < GROWTH_MAX, "what a server sends is kept in memory"
    print(f"{len(FAULTS)} faults: {(daemon.resident - before) >> 20} MiB more")


async def test_what_follows_an_answer_is_never_the_answer_to_the_next_question(board: Board, hostile: Server) -> None:
    """A server that says too short a length could else put words into the mouth of another."""
    forged = answer(body=b'"forged"')
    hostile.script = lambda _request: answer(body=b'"honest"') + forged
    await board.apply(PATIENT)
    for _ in range(5):
        assert json.loads((await call(board, hostile, "next")).output_json) == "honest"
    assert len(hostile.requests) == 5
    hostile.script = play
    assert json.loads((await call(board, hostile, "fine")).output_json) == "fine"
