"""A whole torture: its rounds, its evidence, its end by Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskforgectl.errors import CliError
from taskforgectl.torture.checks import check_all
from taskforgectl.torture.collect import read_world
from taskforgectl.torture.drive import Files, Progress, drive
from taskforgectl.torture.plan import Plan, Round, rounds
from taskforgectl.torture.report import merge, report_of

__all__ = ["Torture", "torture"]


_ROOM_MIB = 256
"""With less the daemon would soon refuse new work, for it leaves some space free."""


@dataclass(frozen=True, slots=True)
class Torture:
    """What is wanted.

    Attributes:
        seed: of the plan.
        length_s: how long there are load and faults.
        folder: where the scratch is made; empty: the system's folder for such things.
        rate: runs and events that are asked for per second.
        keep: keep the evidence also when all is well.
        program: the command instead of `taskforged`.
    """

    seed: int
    length_s: float
    folder: str = ""
    rate: float = 10.0
    keep: bool = False
    program: Sequence[str] = ()

    def command(self, this: Round) -> str:
        """Answer what repeats a round."""
        words = ["taskforgectl", "torture", "--seed", str(this.seed), "--minutes", f"{this.length_s / 60:g}"]
        words += ["--rate", f"{self.rate:g}", *(["--dir", self.folder] if self.folder else [])]
        return shlex.join(words)


def torture(wanted: Torture, show: Callable[[Progress], None]) -> dict[str, Any]:
    """Torture a daemon; answers the report.

    Raises:
        CliError: there is no place for the scratch, or the daemon does not start at all.
        KeyboardInterrupt: somebody has lost patience even with the end.
    """
    folder = _scratch(wanted.folder)
    reports: list[dict[str, Any]] = []
    try:
        for number, this in enumerate(rounds(wanted.seed, wanted.length_s), start=1):
            files = Files(folder / f"round-{number}")
            files.folder.mkdir(mode=0o700)
            report, is_early = asyncio.run(_round(wanted, this, files, show))
            report |= {"command": wanted.command(this), "evidence": str(files.folder), "interrupted": is_early}
            files.report.write_text(json.dumps(report, indent=1))
            reports.append(report)
            if not report["ok"] or is_early:
                break
            if not wanted.keep:
                shutil.rmtree(files.folder)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise CliError(f"the evidence cannot be written below {folder.parent}: {error.strerror or error}") from None
    except (CliError, KeyboardInterrupt):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return _together(wanted, folder, reports)


def _scratch(folder: str) -> Path:
    try:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder or tempfile.gettempdir()).free
        if free < _ROOM_MIB << 20:
            raise CliError(
                f"{folder or tempfile.gettempdir()} has {free >> 20:,} MiB free, a torture needs {_ROOM_MIB}",
                hint="--dir names another disk",
            )
        return Path(tempfile.mkdtemp(prefix="tf-", dir=folder or None)).absolute()
    except OSError as error:
        raise CliError(
            f"no scratch folder can be made in {folder or tempfile.gettempdir()}: {error.strerror}"
        ) from None


def _together(wanted: Torture, folder: Path, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    whole = merge(reports)
    last = reports[-1]
    whole |= {"seed": wanted.seed, "rounds": len(reports), "disk": wanted.folder or str(folder.parent)}
    whole |= {name: last[name] for name in ("command", "evidence", "interrupted")}
    if whole["ok"] and not wanted.keep:
        shutil.rmtree(folder, ignore_errors=True)
        whole["evidence"] = ""
    else:
        (folder / "report.json").write_text(json.dumps(whole, indent=1))
        whole["evidence"] = last["evidence"] if not whole["ok"] else str(folder)
    return whole


async def _round(
    wanted: Torture, this: Round, files: Files, show: Callable[[Progress], None]
) -> tuple[dict[str, Any], bool]:
    """Drive a round and check it; answers its report, and whether it was ended early."""
    stop = asyncio.Event()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def end_early() -> None:
        """The first time, the load ends and the checks are made; the second time, everything ends."""
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, end_early)
    try:
        counts = await drive(Plan(this), files, rate=wanted.rate, program=wanted.program, stop=stop, show=show)
        world = await asyncio.to_thread(read_world, files.ledger, files.calls, files.inventory)
        report = report_of(world, counts, check_all(world))
        return {"seed": this.seed, "minutes": round(this.length_s / 60, 4), **report}, stop.is_set()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
