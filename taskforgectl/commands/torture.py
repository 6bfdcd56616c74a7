"""`taskforgectl torture`: a daemon of its own, killed again and again under load, and what it kept of its promises."""

from __future__ import annotations

import secrets
import shlex
import shutil
import sys
from typing import Any, Self

import click

from taskforgectl.errors import EXIT_INTERRUPTED, EXIT_VIOLATED
from taskforgectl.kinds import FOLDER, Amount
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import echo, show_item

__all__ = ["command"]

_MINUTES_MAX = 7 * 24 * 60
_LINE_S = 10.0
"""Where lines are not drawn over, one comes every so often."""


@click.command("torture", cls=Verb)
@click.option("--minutes", type=Amount(0.05, _MINUTES_MAX), default=2.0, show_default=True, help="How long.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Repeats load and faults of an earlier one.")
@click.option(
    "--dir", "folder", type=FOLDER, metavar="DIR", help="Where the scratch home is made: the disk to be tested."
)
@click.option(
    "--rate",
    type=Amount(0.1, 1000),
    default=10.0,
    show_default=True,
    help="Runs and events per second that are asked for.",
)
@click.option("--keep-evidence", "keep", is_flag=True, help="Keep home, logs and report also when all is well.")
@click.option("--daemon", default="", hidden=True, help="Command in place of taskforged.")
@click.pass_context
def command(
    context: click.Context,
    *,
    minutes: float,
    seed: int | None,
    folder: str | None,
    rate: float,
    keep: bool,
    daemon: str,
) -> None:
    """Kill a daemon of its own again and again under load, and check that it kept every promise.

    Makes a scratch home, starts a daemon on it, and works with it in every way: runs, webhooks, schedules, events,
    limits, approvals, cancels, retries. Meanwhile the daemon is killed, stopped and held still, also while it starts.
    In the end everything must be accounted for. Your own daemon and home are not touched.

    The seed repeats what is done and when; the instants in which threads run and disks answer are not in it.
    Exit code 8 when a promise was broken: then everything is kept, and the message says where. Ctrl-C ends the load
    and still makes the checks; a second one ends at once.
    """
    from taskforgectl.torture.session import Torture, torture  # noqa: PLC0415  loads gRPC and an HTTP server

    settings: Settings = context.obj
    chosen = secrets.randbits(32) if seed is None else seed
    wanted = Torture(chosen, minutes * 60, folder or "", rate, keep, tuple(shlex.split(daemon)))
    with _Line() as line:
        report = torture(wanted, line.show)
    show_item(settings, report, key="seed", people=_tell)
    if not report["ok"]:
        click.echo(f"error: a promise was broken; the evidence is in {report['evidence']}", err=True)
        click.echo(f"hint: {report['command']}", err=True)
        context.exit(EXIT_VIOLATED)
    context.exit(EXIT_INTERRUPTED if report["interrupted"] else 0)


def _tell(report: Any) -> None:
    from taskforgectl.torture.report import lines  # noqa: PLC0415

    for line in lines(report):
        echo(line)
    if report["ok"]:
        kept = f"; everything is kept in {report['evidence']}" if report["evidence"] else ""
        early = ", as far as it went" if report["interrupted"] else ""
        echo(f"\nEvery promise was kept{early}{kept}.")


class _Line:
    """The progress: one line that is drawn over on a terminal, else a line now and then. Goes to stderr."""

    def __init__(self) -> None:
        self._is_drawn = sys.stderr.isatty()
        self._next_s = 0.0
        self._phase = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_drawn and self._phase:
            click.echo("\r\x1b[K", err=True, nl=False)

    def show(self, progress: Any) -> None:
        """Show where it is."""
        if self._is_drawn:
            width = shutil.get_terminal_size().columns - 1
            click.echo(f"\r\x1b[K{_words(progress)[:width]}", err=True, nl=False)
        elif progress.phase != self._phase or progress.at_s >= self._next_s:
            click.echo(_words(progress), err=True)
            self._next_s = progress.at_s + _LINE_S
        self._phase = progress.phase


def _words(progress: Any) -> str:
    broken = f", {progress.broken} BROKEN" if progress.broken else ""
    return (
        f"{_clock(progress.at_s)}/{_clock(progress.length_s)} {progress.phase}: {progress.faults} faults,"
        f" {progress.boots} starts, {progress.started:,} runs asked for, {progress.open_runs} open,"
        f" {progress.calls:,} effects{broken}"
    )


def _clock(at_s: float) -> str:
    minutes, seconds = divmod(int(at_s), 60)
    return f"{minutes:02}:{seconds:02}"
