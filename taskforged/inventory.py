"""`python -m taskforged.inventory --home HOME FILE`: what a home's database holds, proved, as lines of JSON in FILE.

For homes on which no daemon runs; the home's lock is held meanwhile, and nothing in the home is changed.
`taskforgectl torture` is made of it: it never opens a database itself. Each line has a `kind`:

    database   faults: what PRAGMA integrity_check and foreign_key_check find
    boot       one start of a daemon
    leftover   a row that holds a slot or promises work, with its run
    trigger    a trigger; a cron trigger has its ledger in `slots`
    event      an event, the runs that it started, how often and where it is in the feed of watchers
    run        a run, its history without bodies, and in `faults` what `run verify` would say
    dead       a dead letter
    end        the last line

Out: `{"ok": true, "runs", "events"}` or `{"ok": false, "message"}`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from taskforged.config import load_config
from taskforged.control.verifying import run_faults, unreadable
from taskforged.errors import FailedPreconditionError, InvalidArgumentError, TaskforgeError
from taskforged.language.compile import compile_definition
from taskforged.store.changes import StoredEvent
from taskforged.store.database import HomeLock
from taskforged.store.inventory import Inventory
from taskforged.store.runs import RunRow
from taskforged.store.store import Row

__all__ = ["main"]

_Line = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the inventory, and print how much there was."""
    parser = argparse.ArgumentParser(prog="taskforged.inventory")
    parser.add_argument("--home", type=Path)
    parser.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    try:
        answer: _Line = {"ok": True, **_write(given.home, given.file)}
    except TaskforgeError as error:
        answer = {"ok": False, "message": error.message}
    except OSError as error:
        answer = {"ok": False, "message": str(error)}
    sys.stdout.buffer.write(orjson.dumps(answer))
    sys.exit(0 if answer["ok"] else 1)


def _write(home: Path | None, file: Path) -> _Line:
    config = load_config(home, Path(os.devnull), {})
    if not config.database.is_file():
        raise FailedPreconditionError(f"there is no database in {config.home}")
    counts: dict[str, int] = {}
    lock = HomeLock(config.lock)
    lock.acquire()
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with Inventory(config.database) as inventory, os.fdopen(fd, "wb") as out:
            for line in _lines(inventory):
                counts[line["kind"]] = counts.get(line["kind"], 0) + 1
                out.write(orjson.dumps(line) + b"\n")
    finally:
        lock.release()
    return {"runs": counts.get("run", 0), "events": counts.get("event", 0)}


def _lines(inventory: Inventory) -> Iterator[_Line]:
    yield {"kind": "database", "faults": inventory.faults()}
    yield from _named(inventory, "boot", ("epoch", "started_at", "stopped_at"))
    yield from _named(inventory, "leftover", ("what", "run", "state", "claimed"))
    for row in inventory.rows("inventory_triggers"):
        yield _trigger(inventory, row)
    names = ("id", "namespace", "source", "type", "outcome", "path", "delivery", "addressee", "publisher")
    for *fields, runs, told, position, body in inventory.rows("inventory_events"):
        yield {
            "kind": "event",
            **dict(zip(names, fields, strict=True)),
            "runs": orjson.loads(runs),
            "told": told,
            "position": position,
            "body": body,
        }
    for no, *fields in inventory.rows("inventory_runs"):
        yield _run(inventory, no, dict(zip(_RUN_NAMES, fields, strict=True)))
    yield from _named(inventory, "dead", ("run", "state"), "inventory_dead_letters")
    yield {"kind": "end"}


_RUN_NAMES = ("id", "namespace", "workflow", "parent", "retry_of", "rerun_of")


def _named(inventory: Inventory, kind: str, names: Sequence[str], query: str = "") -> Iterator[_Line]:
    for row in inventory.rows(query or f"inventory_{kind}s"):
        yield {"kind": kind, **dict(zip(names, row, strict=True))}


def _trigger(inventory: Inventory, row: Row) -> _Line:
    no, namespace, workflow, key, kind, created_at, removed_at, cursor, schedule = row
    slots = [
        {"due": due, "last": last, "times": times, "outcome": outcome, "event": event, "reason": reason, "runs": runs}
        for due, last, times, outcome, event, reason, ids in inventory.rows("inventory_slots", no)
        for runs in [orjson.loads(ids)]
    ]
    return {
        "kind": "trigger",
        "namespace": namespace,
        "name": f"{workflow}/{key}",
        "is": kind,
        "created_at": created_at,
        "removed_at": removed_at,
        "cursor": cursor,
        "schedule": schedule,
        "slots": slots,
    }


def _run(inventory: Inventory, no: int, names: _Line) -> _Line:
    row = inventory.run(no)
    stored: list[StoredEvent] = []
    try:
        stored = inventory.history(row)
        model = compile_definition(inventory.source(row)).model
        faults = run_faults(row, stored, model=model, event=inventory.event(row), steps=inventory.steps(row))
    except ValueError as error:
        faults = [unreadable(error)]
    except InvalidArgumentError as error:
        faults = [f"its definition cannot be read: {error.message}"]
    return {
        "kind": "run",
        **names,
        **{name: getattr(row, name) for name in _ROW_FIELDS},
        "event": row.event_id,
        "group": row.group_key,
        "faults": faults,
        "history": [_entry(one) for one in stored],
    }


_ROW_FIELDS = tuple(
    name
    for name in RunRow._fields
    if name in {"version", "state", "sequence", "trigger", "request_id", "queue", "priority", "group_limit", "ended_at"}
)


def _entry(one: StoredEvent) -> list[Any]:
    event, body = one.event, one.event.body
    more = {name: body[name] for name in ("epoch", "outcome", "command") if name in body}
    if body.get("pinned") is True:  # of a step; of a run it is all that was taken over
        more["pinned"] = True
    return [event.sequence, event.at, event.kind.value, event.step, event.attempt, more]


if __name__ == "__main__":
    main()
