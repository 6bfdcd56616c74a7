"""`python -m taskforged.checkup`: the daemon's view of a home on which no daemon runs, as one JSON object on stdout.

`taskforgectl doctor` and `taskforgectl config` are made of it: they never open the database, and do not know how
settings are read. `--settings` reads the settings only. Else the home's lock is taken for the time of the look, and
nothing is written. A daemon that starts meanwhile ends the look: `held` says that there is one. Out:
`{"file", "settings": [...], "problems": [...]}`, and without `--settings` also `{"held": bool, "findings": [...]}`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from taskforged.clock import Clock
from taskforged.config import Config, load_config
from taskforged.control.diagnosis import Finding, Subject, error, examine, ok
from taskforged.control.examinations import CHECKS
from taskforged.control.settings import SettingView, settings_in_force
from taskforged.errors import CorruptStoreError, FailedPreconditionError, InvalidArgumentError
from taskforged.store.database import HomeLock
from taskforged.store.inspection import Inspection

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Look, and print what was seen."""
    parser = argparse.ArgumentParser(prog="taskforged.checkup")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--settings", action="store_true")
    parser.add_argument("--database-s", type=float, default=60.0)
    parser.add_argument("--key-elsewhere", action="store_true", help="the daemon gets a master key that we do not")
    given = parser.parse_args(arguments)
    problems: list[dict[str, str]] = []
    try:
        config = load_config(given.home, given.config)
    except InvalidArgumentError as problem:
        problems = [{"place": one.path, "message": one.message} for one in problem.violations]
        problems = problems or [{"place": "", "message": problem.message}]
        defaults = load_config(given.home, Path(os.devnull), {})  # where things are does not depend on settings
        config = replace(defaults, given_file=given.config)
    answer: dict[str, Any] = {
        "file": str(config.config_file),
        "settings": [] if problems else [_setting(one) for one in settings_in_force(config)],
        "problems": problems,
    }
    if not given.settings:
        answer |= _look(config, given.database_s, answer, sees_key=not given.key_elsewhere)
    sys.stdout.buffer.write(orjson.dumps(answer))


def _look(config: Config, database_s: float, known: Mapping[str, Any], *, sees_key: bool) -> dict[str, Any]:
    if not config.database.exists():
        found = [one._replace(check="database") for one in ok("there is no database yet; the first start makes it")]
        return {"held": False, "findings": [_finding(one) for one in found]}
    lock = HomeLock(config.lock, looks=True)
    try:
        lock.acquire()
    except FailedPreconditionError:
        return dict(_HELD)
    except OSError as problem:
        found = error(f"{config.lock} cannot be locked: {problem.strerror}", f"make {config.home} writable for you")
        return {"held": False, "findings": [_finding(one._replace(check="database")) for one in found]}
    over = threading.Event()
    giving_way = threading.Thread(target=_give_way, args=(lock, over, known), name="give way", daemon=True)
    giving_way.start()
    try:
        found = asyncio.run(_examine(config, database_s, sees_key=sees_key))
        return {"held": False, "findings": [_finding(one) for one in found]}
    finally:
        over.set()
        giving_way.join()
        lock.release()


_HELD: Mapping[str, Any] = {"held": True, "findings": []}
_WISH_S = 0.1


def _give_way(lock: HomeLock, over: threading.Event, known: Mapping[str, Any]) -> None:
    """End this process as soon as a daemon wants the home: a query that is under way could last for minutes."""
    while not over.wait(_WISH_S):
        if lock.is_wanted():
            sys.stdout.buffer.write(orjson.dumps({**known, **_HELD}))
            sys.stdout.flush()
            os._exit(0)


async def _examine(config: Config, database_s: float, *, sees_key: bool) -> list[Finding]:
    try:
        async with Inspection(config.database) as inspection:
            return await examine(Subject(config, inspection, Clock().now(), database_s, sees_key=sees_key), CHECKS)
    except CorruptStoreError as problem:
        found = error(problem.message, "restore a backup: `taskforgectl restore --help`")
        return [one._replace(check="database") for one in found]


def _setting(one: SettingView) -> dict[str, Any]:
    values = {"value": orjson.loads(one.value), "default": orjson.loads(one.default)}
    return {
        "section": one.section,
        "key": one.key,
        **values,
        "source": one.origin.name,
        "variable": one.variable,
        "help": one.help,
    }


def _finding(one: Finding) -> dict[str, str]:
    return {"check": one.check, "severity": one.severity.name, "message": one.message, "remedy": one.remedy}


if __name__ == "__main__":
    main()
