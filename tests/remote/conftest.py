"""Daemons that speak TLS. The tests of a module share one, and may change its certificate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon
from remote.support import CA, Client, leaf, put, tls_daemon


@pytest.fixture(scope="module")
def _secured() -> Iterator[Daemon]:
    made = tls_daemon(leaf(days=10))
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
def secured(_secured: Daemon) -> Iterator[Daemon]:
    """A daemon with a certificate of the CA. What a test has put there is replaced afterwards."""
    yield _secured
    put(_secured.home / "tls", leaf())


@pytest.fixture(scope="module")
def guarded() -> Iterator[Daemon]:
    """A daemon that wants certificates of the CA from gRPC clients."""
    made = tls_daemon(leaf(), TASKFORGE_TLS_CLIENT_CA="tls/clients.pem")
    CA.cert_pem.write_to_path(made.home / "tls" / "clients.pem")
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Client:
    """Somebody with a command line."""
    return Client(tmp_path, monkeypatch, capsys)


@pytest.fixture
def files(tmp_path: Path) -> Any:
    """Puts a leaf certificate into files: `files("name", leaf)` answers their paths."""
    return lambda name, one: tuple(str(path) for path in put(tmp_path / name, one))
