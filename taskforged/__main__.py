"""`taskforged`: arguments, configuration, then the daemon in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # before grpc is imported; we never fork without exec
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core prints what we report better

from taskforged.lean import import_lean

import_lean()  # before anything else imports the same

import structlog
import uvloop

from taskforged import __version__, failpoints
from taskforged.config import SETTINGS, Config, load_config
from taskforged.daemon import run_daemon
from taskforged.errors import CorruptStoreError, InvalidArgumentError, TaskforgeError
from taskforged.logs import configure_logging
from taskforged.systemd import ServiceManager

__all__ = ["main"]

_EXIT_USAGE = 2
_EXIT_FAILED = 1
_EXIT_CORRUPT = 65
"""EX_DATAERR of sysexits.h; the systemd unit does not restart on it, since a restart would not help."""


def _parser() -> argparse.ArgumentParser:
    settings = "\n".join(f"  [{s.section}] {s.key:<16} {s.help} (default {s.default}; {s.variable})" for s in SETTINGS)
    parser = argparse.ArgumentParser(
        prog="taskforged",
        description="The Taskforge daemon. Runs in the foreground and logs to stderr.",
        epilog=f"settings, in config.toml or as variables:\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--home", type=Path, help="data folder (default ~/.taskforge, or TASKFORGE_HOME)")
    parser.add_argument("--config", type=Path, help="configuration file (default config.toml in the home)")
    parser.add_argument(
        "--forget-secrets",
        action="store_true",
        help="delete all secrets if the master key does not fit them: it is lost",
    )
    parser.add_argument("--version", action="version", version=f"taskforged {__version__}")
    return parser


def main() -> None:
    """Run the daemon and exit with its code."""
    arguments = _parser().parse_args()
    try:
        config = load_config(arguments.home, arguments.config)
        configure_logging(config("log", "level"), config("log", "format"))
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    except InvalidArgumentError as error:
        print(f"taskforged: {error}", file=sys.stderr)  # noqa: T201  logging may not be set up yet
        sys.exit(_EXIT_USAGE)
    sys.exit(_run(config, forget_secrets=arguments.forget_secrets))


def _limit_memory(mib: int) -> None:
    """Bound the address space, so that what an expression allocates inside its C++ runtime is bounded, too.

    CEL bounds iterations and not the size of a text: joining a long list with a long separator multiplies the two.
    Beyond the limit the allocation fails, and with it the expression's step; without one the kernel would kill us.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mib << 20 if hard == resource.RLIM_INFINITY else min(mib << 20, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _run(config: Config, *, forget_secrets: bool) -> int:
    _limit_memory(config("limits", "memory_mib"))
    log = structlog.get_logger("taskforged")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run_daemon(config, ServiceManager.take(), forget_secrets=forget_secrets))
    except CorruptStoreError as error:
        log.critical("daemon.cannot_start", error=error.message, reason=error.reason)
        return _EXIT_CORRUPT
    except (TaskforgeError, OSError) as error:
        log.critical("daemon.cannot_start", error=str(error), reason=getattr(error, "reason", "OS_ERROR"))
        return _EXIT_FAILED


if __name__ == "__main__":
    main()
