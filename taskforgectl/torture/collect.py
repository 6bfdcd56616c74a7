"""What the checks look at: the ledger of the driver, the calls that the outside world saw, the daemon's inventory."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Call", "Entry", "Event", "Leftover", "Run", "Slot", "Trigger", "World", "read_world"]


class Entry(NamedTuple):
    """A history event of a run, with a few fields of its body."""

    sequence: int
    at: int
    kind: str
    step: str
    attempt: int
    more: Mapping[str, Any]


class Run(NamedTuple):
    """A stored run."""

    id: str
    workflow: str
    state: str
    sequence: int
    history: Sequence[Entry]
    namespace: str = "default"
    trigger: str = "manual"
    request: str | None = None
    event: str | None = None
    queue: str = "default"
    group: str = ""
    group_limit: int = 0
    parent: str | None = None
    retry_of: str | None = None
    rerun_of: str | None = None
    faults: Sequence[str] = ()


class Event(NamedTuple):
    """A stored event."""

    id: str
    source: str
    type: str
    outcome: str
    namespace: str = "default"
    delivery: str = ""
    addressee: str = ""
    publisher: str | None = None
    runs: Sequence[str] = ()
    told: int = 1
    position: int | None = None
    body: str | None = None


class Slot(NamedTuple):
    """What became of a due time, or of a range of them. Times are microseconds."""

    due: int
    last: int
    times: int
    outcome: str
    event: str | None
    reason: str
    runs: Sequence[str]


class Trigger(NamedTuple):
    """A cron trigger with its ledger."""

    name: str
    created_at: int
    removed_at: int | None
    slots: Sequence[Slot]


class Leftover(NamedTuple):
    """A row that somebody still has to do something about."""

    what: str
    run: str | None
    state: str | None
    claimed: int


class Call(NamedTuple):
    """A request that the effect server has seen, in the driver's seconds. Status 0: the caller got no answer."""

    key: str
    family: str
    name: str
    boot: int
    began: float
    ended: float
    mood: str = "ok"
    status: int = 200
    due: str | None = None

    @property
    def run(self) -> str:
        """The run that the key names."""
        return self.key.partition("/")[0]

    @property
    def step(self) -> str:
        """The step that the key names."""
        return self.key.partition("/")[2]


@dataclass(slots=True)
class World:
    """All that is known of a round.

    Attributes:
        database: what SQLite finds wrong; None: there is no inventory, or it breaks off.
        ledger: the entries of the driver by kind.
        calls: by key, in the order of their beginnings.
    """

    database: Sequence[str] | None = ()
    boots: int = 1
    runs: dict[str, Run] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    triggers: list[Trigger] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    dead: list[str | None] = field(default_factory=list)
    ledger: dict[str, list[Mapping[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    calls: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))

    @property
    def is_clock_steady(self) -> bool:
        """Whether times in different histories can be compared."""
        return not self.ledger.get("clock")

    @property
    def came_to_rest(self) -> bool:
        """Whether the driver has seen everything end; else what is open need not be wrong."""
        return bool(self.ledger.get("slots"))


def read_world(ledger: Path, calls: Path, inventory: Path) -> World:
    """Read the evidence of a round."""
    world = World(database=None)
    for line in _lines(ledger):
        world.ledger[line["what"]].append(line)
    for line in _lines(calls):
        call = Call(**line)
        world.calls[call.key].append(call)
    for made in world.calls.values():
        made.sort(key=lambda call: call.began)
    _read_inventory(world, inventory)
    return world


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            yield json.loads(line)


def _read_inventory(world: World, path: Path) -> None:
    faults: Sequence[str] | None = None
    world.boots = 0
    for line in _lines(path):
        kind = line.pop("kind")
        if kind == "database":
            faults = line["faults"]
        elif kind == "boot":
            world.boots += 1
        elif kind == "leftover":
            world.leftovers.append(Leftover(**line))
        elif kind == "trigger" and line["is"] == "cron":
            world.triggers.append(_trigger(line))
        elif kind == "event":
            world.events[line["id"]] = Event(**_known(Event, line))
        elif kind == "run":
            run = _run(line)
            world.runs[run.id] = run
        elif kind == "dead":
            world.dead.append(line["run"])
        elif kind == "end":
            world.database = faults


def _trigger(line: Mapping[str, Any]) -> Trigger:
    slots = [Slot(**slot) for slot in line["slots"]]
    return Trigger(line["name"], line["created_at"], line["removed_at"], slots)


def _run(line: Mapping[str, Any]) -> Run:
    history = [Entry(*entry) for entry in line["history"]]
    return Run(**_known(Run, line) | {"history": history, "request": line["request_id"]})


def _known(kind: Any, line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in kind._fields if name in line}
