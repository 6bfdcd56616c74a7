"""`taskforgectl`: the root command, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from typing import NoReturn

import click

from taskforgectl import __version__
from taskforgectl.errors import EXIT_INTERRUPTED, EXIT_USAGE, CliError, RemoteError
from taskforgectl.lazy import LazyGroup, PipeClosedError
from taskforgectl.options import Settings, global_options
from taskforgectl.render.safe import safe_line, safe_lines

__all__ = ["main", "root"]

_COMMANDS = {
    "init": "Make a home: folder, configuration, key, token.",
    "up": "Start the daemon.",
    "down": "Stop the daemon.",
    "restart": "Stop the daemon and start it again.",
    "status": "Show whether the daemon runs, and where.",
    "logs": "Show what the daemon has logged.",
    "doctor": "Check home, daemon and service, and say how to mend what is wrong.",
    "workflow": "Apply, check, show and draw workflows.",
    "run": "Start, watch, show and steer runs.",
    "dead": "Show, retry and discard runs that ran out of retries.",
    "trigger": "Show, pause, fire and try out what starts runs.",
    "schedule": "Show what became of due times, and make up for them.",
    "event": "Show what happened and what became of it; publish and replay.",
    "queue": "Show and limit the lanes in which steps wait.",
    "namespace": "Keep tenants and their limits.",
    "secret": "Set and delete secrets.",
    "token": "Create, rotate and revoke credentials.",
    "audit": "Show who changed what, or tried to.",
    "context": "Keep the daemons of other machines by name.",
    "stats": "Show the daemon's counters.",
    "storage": "Show what the database holds.",
    "backup": "Make, list and verify copies of the database.",
    "restore": "Put a backup in the place of the database.",
    "prune": "Delete now what is old enough and what nothing needs.",
    "torture": "Kill a daemon of its own under load, and check that it kept every promise.",
    "config": "Show the settings in force, and check the configuration file.",
    "completion": "Print what makes a shell complete commands and names.",
    "version": "Show the version.",
}

_COMPLETE = "_TASKFORGECTL_COMPLETE"
"""Set by the scripts of `completion`."""

_EPILOG = """\
\b
Exit codes: 0 done; 1 failed, also the run that was waited for; 2 usage; 3 not
found; 4 not permitted; 5 daemon unreachable; 6 conflict; 7 a limit is reached;
8 a torture found a broken promise; 130 interrupted.
"""


def root() -> LazyGroup:
    """Answer the root command."""
    top = LazyGroup(
        "taskforgectl",
        lazy=_COMMANDS,
        params=global_options(hidden=False),
        help="Taskforge's command line: noun, then verb.",
        epilog=_EPILOG,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    return click.version_option(__version__, prog_name="taskforgectl")(top)


def main() -> NoReturn:
    """Run a command and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # replaced by something that is not a text file
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(_run())


def _run() -> int:
    settings = Settings()
    if _COMPLETE in os.environ:
        importlib.import_module("taskforgectl.shells")  # knows bash better than click does
    try:
        with _help_pager():
            code = root().main(prog_name="taskforgectl", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except CliError as error:
        return _fail(_meant(settings, error), settings)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "taskforgectl"
        return _fail(CliError(error.format_message(), hint=f"see `{path} --help`", code=EXIT_USAGE))
    except click.ClickException as error:
        return _fail(CliError(error.format_message(), code=error.exit_code))
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except UnicodeEncodeError:  # bytes of the command line that are not text travel as lone surrogates
        return _fail(CliError("an argument is not UTF-8 text", code=EXIT_USAGE))
    except (BrokenPipeError, PipeClosedError):
        return _pipe_closed()
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(CliError(f"{place}{error.strerror or error}"))
    return code if isinstance(code, int) else 0


def _help_pager() -> contextlib.AbstractContextManager[None]:
    """Answer what pages help, when help is asked for; all other output sees to itself."""
    program = Settings().pager
    if not program or "--no-pager" in sys.argv or not {"-h", "--help"} & set(sys.argv):
        return contextlib.nullcontext()
    from taskforgectl.render.pager import paged  # noqa: PLC0415  takes a while to load

    return paged(program)


def _meant(settings: Settings, error: CliError) -> CliError:
    """Answer the error with a hint at the name that was meant, if one is like it."""
    if not isinstance(error, RemoteError) or error.status != "NOT_FOUND" or not error.metadata:
        return error
    from taskforgectl.names import likely  # noqa: PLC0415  loads gRPC, which whoever got this error has loaded

    error.hint = likely(settings, error.metadata) or error.hint
    return error


def _fail(error: CliError, settings: Settings | None = None) -> int:
    """Tell what is wrong. Messages may hold a server's text, hence the cleaning."""
    click.echo(f"error: {safe_lines(error.message)}", err=True)
    for violation in error.violations if isinstance(error, RemoteError) else ():
        if not error.message.endswith(violation.message):  # often the only one, and the message has it
            click.echo(f"  {safe_line(violation.describe())}", err=True)
    if error.hint:
        hint = settings.spell(error.hint) if settings else error.hint
        click.echo(f"hint: {safe_lines(hint)}", err=True)
    return error.code


def _pipe_closed() -> int:
    """The reader, `head` for example, has seen enough: end like a program that SIGPIPE ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains while it flushes at exit
    return 128 + signal.SIGPIPE


if __name__ == "__main__":
    main()
