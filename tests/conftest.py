"""Fixtures that need a real daemon. Each test gets its own home, ports and processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from harness import Daemon, EffectServer


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
