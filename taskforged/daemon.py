"""The one composition root: builds the parts, wires them, starts them in order, drains and stops them.

Start: lock, home, store, access, definitions, runner (decides the attempts of earlier boots), timers, then the doors,
and only then READY. Stop, in the order of the data flow: doors stop taking, watchers are sent away, running steps get
their grace, the journal commits what is left, the database is checkpointed and closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import orjson
import structlog

from taskforged import __version__
from taskforged.clock import Clock
from taskforged.config import Config, is_loopback
from taskforged.control.access import new_credential
from taskforged.control.examinations import is_sqlite_mended, tzdata_version
from taskforged.control.system import Info
from taskforged.errors import FailedPreconditionError, TaskforgeError
from taskforged.failpoints import reach
from taskforged.keyring import find_keys
from taskforged.lean import settle
from taskforged.logs import LogFile
from taskforged.store.backup import back_up_before_upgrade
from taskforged.store.database import HomeLock
from taskforged.store.sql import QUERIES
from taskforged.store.store import SQLITE_VERSION, Connection, Store
from taskforged.systemd import ServiceManager
from taskforged.triggers.webhook import WebhookListener
from taskforged.wiring import Parts, build

__all__ = ["EXIT_DISK", "Daemon", "run_daemon"]

_log = structlog.get_logger(__name__)

EXIT_DISK = 74
"""EX_IOERR of sysexits.h: the disk failed under the journal. systemd restarts, and recovery decides."""

_HOUSEKEEPING_S = 60.0
_RPC_GRACE_S = 3.0

_PATIENCE_S = 120.0
"""For how long the service manager is asked to wait on, again and again, while the database is opened."""

_STOP_S = 30.0
"""How long a stop may take besides the grace of running steps: open calls, the last commits, a checkpoint."""


class Daemon:
    """One daemon on one home."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock | None = None,
        manager: ServiceManager | None = None,
        forget_secrets: bool = False,
    ) -> None:
        self._config = config
        self._forget_secrets = forget_secrets
        self._clock = clock or Clock()
        self._manager = manager or ServiceManager()
        self._stop = asyncio.Event()
        self._exit_code = 0
        self.info = Info(version=__version__, pid=os.getpid(), home=str(config.home), sqlite_version=SQLITE_VERSION)

    def request_stop(self) -> None:
        """Begin to drain. Idempotent."""
        self._stop.set()

    async def run(self, on_ready: Callable[[Info], None] = lambda _: None) -> int:
        """Start, serve until asked to stop, drain, stop; answers the exit code.

        Raises:
            FailedPreconditionError: another daemon holds the home, or an address is in use.
            CorruptStoreError: the database or the key cannot be used.
        """
        _prepare_home(self._config)
        reach("start.token_written")
        lock = HomeLock(self._config.lock)
        lock.acquire()
        try:
            async with self._store() as store:
                await self._run_on(store, on_ready)
        finally:
            lock.release()
        return self._exit_code

    @contextlib.asynccontextmanager
    async def _store(self) -> AsyncIterator[Store]:
        store = Store(
            self._config.database,
            synchronous=self._config("store", "synchronous"),
            on_failure=self._disk_failed,
            before_upgrade=self._back_up,
        )
        patience = asyncio.create_task(self._ask_for_patience(), name="patience")
        try:
            await store.start()
        finally:
            patience.cancel()
        try:
            yield store
        finally:
            await store.stop()

    async def _ask_for_patience(self) -> None:
        """Keep the service manager from ending a start that migrates, and first copies and checks, a large database."""
        while True:
            await asyncio.sleep(_PATIENCE_S / 4)
            self._manager.notify(f"EXTEND_TIMEOUT_USEC={int(_PATIENCE_S * 1e6)}")

    def _back_up(self, connection: Connection) -> None:
        if self._config("backup", "before_upgrade"):
            back_up_before_upgrade(connection, self._config.backups)

    def _disk_failed(self, _: BaseException) -> None:
        self._exit_code = EXIT_DISK
        self._stop.set()

    async def _run_on(self, store: Store, on_ready: Callable[[Info], None]) -> None:
        self.info.schema_version = store.schema
        self.info.boot_epoch = await store.journal.execute(self._record_boot)
        reach("start.boot_recorded")
        try:
            async with contextlib.AsyncExitStack() as stack:
                parts = await self._start(store, stack)
                self._announce(on_ready)
                settle()
                housekeeping = asyncio.create_task(self._housekeeping(parts), name="housekeeping")
                housekeeping.add_done_callback(lambda _: self._stop.set())
                self._watch(parts, stack)
                self._keep_log_small(stack)
                await self._stop.wait()
                await self._drain(parts, housekeeping)
        except TaskforgeError:  # a start that was refused is no daemon that died
            with contextlib.suppress(TaskforgeError):
                await self._record_stop(store)
            raise
        reach("stop.drained")
        if not self._exit_code:
            await self._record_stop(store)
            reach("stop.recorded")
        _log.info("daemon.stopped", exit_code=self._exit_code)

    async def _record_stop(self, store: Store) -> None:
        row = (self._clock.now(), self.info.boot_epoch)
        await store.journal.execute(lambda c: c.execute(QUERIES["stop_boot"], row))

    def _record_boot(self, connection: Connection) -> int:
        row = (self._clock.now(), os.getpid(), __version__)
        epoch = connection.execute(QUERIES["insert_boot"], row).lastrowid
        assert epoch is not None
        return epoch

    async def _start(self, store: Store, stack: contextlib.AsyncExitStack) -> Parts:
        """Start everything; whatever was started is stopped again when something behind it fails."""
        parts = build(self._config, self._clock, store, self.info, find_keys(self._config.master_key))
        await parts.secrets.start(forget=self._forget_secrets)
        parts.pulse.start()
        stack.callback(parts.pulse.stop)
        await parts.access.start()
        await parts.access.adopt(_read_token(self._config.token))
        await parts.namespaces.start()
        await parts.queues.start()
        await parts.workflows.start()
        for executor in parts.executors:
            await executor.start()
            stack.push_async_callback(executor.close)
        stack.push_async_callback(parts.book.stop)
        stack.push_async_callback(parts.runner.drain, 0.0)
        lost = await parts.runner.start(self.info.boot_epoch)
        reach("start.recovered")
        await parts.timers.start()
        stack.push_async_callback(parts.timers.stop)
        if parts.traces is not None:
            await parts.traces.start()
            stack.push_async_callback(parts.traces.stop)
        await parts.stuck.start()
        stack.push_async_callback(parts.stuck.stop)
        await parts.consumer.start()
        stack.push_async_callback(parts.consumer.stop)
        await parts.scheduler.start()
        await parts.cron.start()
        stack.push_async_callback(parts.cron.stop)
        await parts.storage.start()
        stack.push_async_callback(parts.storage.stop)
        self.info.http = await self._start_http(parts.http)
        stack.push_async_callback(parts.http.stop, 0.0)
        stack.push_async_callback(parts.rpc.stop, 0.0)
        self.info.grpc = await parts.rpc.start(listen=self._config("grpc", "listen"), socket=self._config.socket)
        await parts.rpc.serve()
        reach("start.serving")
        _log.info(
            "daemon.started",
            grpc=self.info.grpc,
            http=self.info.http,
            epoch=self.info.boot_epoch,
            cut_attempts=lost,
            version=__version__,
            schema=store.schema,
            python=platform.python_version(),
            sqlite=SQLITE_VERSION,
            sqlite_has_wal_reset_bug=not is_sqlite_mended(SQLITE_VERSION),
            tzdata=tzdata_version(),
        )
        return parts

    async def _start_http(self, listener: WebhookListener) -> str:
        address = self._config("http", "listen")
        adopted = self._manager.http_socket()
        if adopted is not None:
            _check_adopted(adopted, self._config)
        try:
            await listener.start(adopted)
        except OSError as error:
            raise FailedPreconditionError(
                f"cannot listen for webhooks on {address}: {error.strerror or error};"
                " set [http] listen in config.toml or TASKFORGE_HTTP_LISTEN",
                reason="ADDRESS_IN_USE",
                metadata={"address": address},
            ) from error
        return listener.base_url

    def _announce(self, on_ready: Callable[[Info], None]) -> None:
        self.info.state = "ready"
        self.info.started_at = self._clock.now()
        content = {
            "pid": self.info.pid,
            "folder": _identity(self._config.home),
            "version": self.info.version,
            "grpc": self.info.grpc,
            "certificate": str(certificate) if (certificate := self._config.file("tls", "cert")) else "",
            "http": self.info.http,
            "boot_epoch": self.info.boot_epoch,
        }
        _write_private(self._config.run_file, orjson.dumps(content, option=orjson.OPT_INDENT_2))
        doors = ", ".join([*self.info.grpc, self.info.http])
        self._manager.notify("READY=1", f"STATUS=listening on {doors}")
        on_ready(self.info)

    def _watch(self, parts: Parts, stack: contextlib.AsyncExitStack) -> None:
        """Feed the watchdog until everything has stopped."""
        if self._manager.watchdog_s:
            feeding = asyncio.create_task(self._manager.feed_watchdog(parts.pulse.is_alive), name="watchdog")
            stack.callback(feeding.cancel)

    def _keep_log_small(self, stack: contextlib.AsyncExitStack) -> None:
        size = self._config("log", "file_mib") << 20
        log_file = LogFile(self._config.log, bytes_max=size, keep=self._config("log", "files"))
        stack.callback(asyncio.create_task(log_file.look_after(), name="log file").cancel)

    async def _housekeeping(self, parts: Parts) -> None:
        while True:
            if parts.certificates is not None:
                parts.certificates.look_after()
            await asyncio.sleep(_HOUSEKEEPING_S)
            with contextlib.suppress(TaskforgeError):  # a full disk or a busy journal must not end the daemon
                await parts.access.flush_last_used()
                await parts.audit.flush()
                await parts.audit.prune()

    async def _drain(self, parts: Parts, housekeeping: asyncio.Task[None]) -> None:
        _log.info("daemon.draining")
        self.info.state = "draining"
        grace_s = 0.0 if self._exit_code else self._config("executor", "grace")
        self._manager.notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int((grace_s + _STOP_S) * 1e6)}")
        self._config.run_file.unlink(missing_ok=True)
        housekeeping.cancel()
        reach("stop.draining")
        await parts.rpc.drain()
        parts.feed.close()
        parts.runner.dismiss_waiters()
        await asyncio.gather(parts.http.stop(_RPC_GRACE_S), parts.rpc.stop(_RPC_GRACE_S))
        reach("stop.doors_closed")
        await parts.timers.stop()
        await parts.cron.stop()
        await parts.consumer.stop()
        await parts.storage.stop()
        await parts.runner.drain(grace_s)
        if not self._exit_code:
            with contextlib.suppress(TaskforgeError):
                await parts.access.flush_last_used()
                await parts.audit.flush()


def _check_adopted(adopted: socket.socket, config: Config) -> None:
    """Hold a socket that was handed over to the rules that an address of our own is held to.

    Raises:
        FailedPreconditionError: it can be reached from other machines, and webhooks would come in clear text.
    """
    host, port = adopted.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    wanted = config("http", "listen")
    if not is_loopback(address) and not config.https and not config("http", "behind_proxy"):
        raise FailedPreconditionError(
            f"the socket handed over listens on {address}, where webhooks would travel in clear text: set [tls] cert"
            " and key, or [http] behind_proxy, or ListenStream=127.0.0.1:7421 in taskforged.socket",
            reason="BAD_SOCKET",
            metadata={"address": address},
        )
    if address != wanted:
        _log.warning("http.other_address", handed_over=address, setting=wanted)


# --- the home --------------------------------------------------------------------------------------------------------


def _prepare_home(config: Config) -> None:
    """Make the home and its token where they are missing; refuse one that others can read."""
    os.umask(0o077)
    config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if config.home.stat().st_mode & 0o077:
        raise FailedPreconditionError(
            f"{config.home} is open to other users; close it with `chmod 700 {config.home}`", reason="HOME_NOT_PRIVATE"
        )
    if not config.token.exists():
        _write_private(config.token, new_credential()[1].encode() + b"\n")


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    temporary.replace(path)


def _identity(folder: Path) -> str:
    """Tell a folder from a copy of it, under whatever name it is seen."""
    found = folder.stat()
    return f"{found.st_dev}:{found.st_ino}"


def _read_token(path: Path) -> str:
    return path.read_text().strip()


async def run_daemon(config: Config, manager: ServiceManager, *, forget_secrets: bool = False) -> int:
    """Run a daemon until SIGTERM or SIGINT; a second signal ends it at once."""
    daemon = Daemon(config, manager=manager, forget_secrets=forget_secrets)
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if daemon.info.state == "draining":
            _log.warning("daemon.killed", signal=signal.Signals(number).name)
            sys.stderr.flush()
            os._exit(128 + number)
        daemon.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return await daemon.run()
