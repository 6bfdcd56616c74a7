"""One daemon for the tests of a module that leave it alive, and one of their own for those that kill it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from harness import Daemon
from semantics.stage import Recorder, Stage
from semantics.support import Service, World


@pytest.fixture(scope="module")
def living() -> Iterator[tuple[Daemon, Service]]:
    """A daemon with its service."""
    made = Daemon(env={"TASKFORGE_SHELL_UNSAFE": "true"})
    with Service() as service:
        try:
            yield made.start(), service
        finally:
            made.close()


@pytest.fixture
async def world(living: tuple[Daemon, Service]) -> AsyncIterator[World]:
    """The shared world, with a service that remembers nothing."""
    daemon, service = living
    service.clear()
    service.answers.clear()
    service.closed.clear()
    try:
        yield World(daemon, service)
    finally:
        await daemon.disconnect()


@pytest.fixture
async def mortal() -> AsyncIterator[World]:
    """A world of the test's own, to be killed."""
    made = Daemon(env={"TASKFORGE_SHELL_UNSAFE": "true"})
    with Service() as service:
        try:
            await asyncio.to_thread(made.start)
            yield World(made, service)
        finally:
            await made.aclose()


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Daemon, Recorder]]:
    """A daemon with its service."""
    made = Daemon(env={"TASKFORGE_SHELL_UNSAFE": "true"})
    with Recorder() as service:
        try:
            yield made.start(), service
        finally:
            made.close()


@pytest.fixture
async def stage(running: tuple[Daemon, Recorder]) -> AsyncIterator[Stage]:
    """The shared daemon, with a service that remembers nothing."""
    daemon, service = running
    service.clear()
    service.answers.clear()
    service.closed.clear()
    try:
        yield Stage(daemon, service)
    finally:
        await daemon.disconnect()
