"""Fixtures that need a real daemon. Each test gets its own home, ports and processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterator

import pytest
from harness import Daemon, EffectServer, Tenant
from nursery import Nursery
from switchboard import Board

LONG = (
    *(
        "test_service.py",
        "test_doctor.py",
        "test_escapes.py",
        "test_inbox_schemes.py",
        "test_host_simulation.py",
        "test_simulator.py",
    ),
    *("test_finish.py", "test_trial_command.py", "test_life.py", "test_runs.py", "test_gallery.py", "test_contexts.py"),
    *("test_hostile_strings.py", "test_tls_daemon.py", "test_tls_webhook.py", "test_guard.py", "test_scheduler.py"),
    *("test_open_streams.py", "test_long_load.py", "test_checkpoints.py"),
    *("test_metrics.py", "test_backups.py", "test_socket_activation.py", "test_typed_pages.py", "test_readme.py"),
    *("test_failpoint_kills.py", "test_syscall_sweep.py", "test_powercut.py"),
)
"""Files that take long. With them first no worker is left alone with one at the end."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take long first; their order and that of all others stays random."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session", autouse=True)
def _nursery() -> Iterator[None]:
    """Let the daemons of all tests come from one nursery, which the first of them starts."""
    with contextlib.ExitStack() as stack:
        Daemon.shared = functools.cache(lambda: stack.enter_context(Nursery()))
        yield
        Daemon.shared = None


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


@pytest.fixture
async def tenant(board: Board) -> AsyncIterator[Tenant]:
    """The same as a daemon's whose calls go to a namespace of their own."""
    made = Tenant(board.daemon, board.namespace)
    try:
        yield made
    finally:
        await made.disconnect()
