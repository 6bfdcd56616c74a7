"""The command line against a real daemon."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from cli.fake import Caller, Fake
from cli.support import FAILS, HELLO, NAP, SHORT_NAPS, Ctl
from harness import Daemon


@pytest.fixture(scope="session")
def shared() -> Iterator[Daemon]:
    """One daemon for all tests that leave it alone."""
    made = Daemon()
    try:
        ctl = Ctl(made.start().home)
        for source in (HELLO, NAP, SHORT_NAPS, FAILS):
            ctl.apply(source)
        yield made
    finally:
        made.close()


@pytest.fixture
def ctl(shared: Daemon) -> Ctl:
    """The command line of the shared daemon."""
    return Ctl(shared.home)


@pytest.fixture
def own() -> Iterator[Daemon]:
    """A daemon of the test's own, to be killed."""
    made = Daemon()
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
def empty() -> Iterator[Ctl]:
    """A home that does not exist yet; a daemon that was started on it is stopped."""
    made = Daemon()
    ctl = Ctl(made.home)
    try:
        yield ctl
    finally:
        subprocess.run(ctl.command("down"), env=ctl.environment(), capture_output=True, timeout=60, check=False)
        made.close()


@pytest.fixture(scope="session")
def _fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.stop()


@pytest.fixture
def call(_fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Caller:
    """Commands in this process, against a daemon that answers what the test wants."""
    _fake.answers.clear()
    _fake.requests.clear()
    return Caller(_fake, monkeypatch, capsys)
