"""Fixtures that need a real daemon. Each test gets its own home, ports and processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from harness import Daemon, EffectServer
from switchboard import Board


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    """A daemon that is ready."""
    made = Daemon()
    try:
        yield await asyncio.to_thread(made.start)
    finally:
        await made.aclose()


@pytest.fixture
def effects() -> Iterator[EffectServer]:
    """A server that counts calls."""
    with EffectServer() as server:
        yield server


@pytest.fixture(scope="module")
def switched() -> Iterator[Daemon]:
    """A daemon that the tests of a module share, each in a namespace of its own."""
    made = Daemon(env={"TASKFORGE_LIMITS_CAUSAL_DEPTH": "4"})
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
async def board(switched: Daemon) -> AsyncIterator[Board]:
    """A namespace of its own on a shared daemon."""
    made = Board(switched)
    try:
        yield await made.fresh()
    finally:
        await made.close()


@pytest.fixture
async def own(daemon: Daemon) -> AsyncIterator[Board]:
    """The namespace `default` of a daemon that nobody else uses."""
    made = Board(daemon)
    try:
        yield made
    finally:
        await made.close()
