"""What is going to happen, made from the seed alone: the same seed gives the same faults, load and moods.

When threads run and disks answer is not in the plan, so two tortures with one seed do the same things and need not
meet in the same instants.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = [
    "FAULTS_MIN",
    "ROUND_S",
    "Fault",
    "Plan",
    "Round",
    "Wish",
    "rounds",
    "stream",
]

ROUND_S = 600.0
"""Each ten minutes are a round of their own, with a fresh home: that bounds memory, disk and what a failure keeps."""

_GAP_S = (1.5, 8.0)
"""Between two faults, unless the torture is a short one."""

_PER_ROUND = 6
"""Faults that even a short torture has."""


class Fault(NamedTuple):
    """Something done to the daemon.

    Attributes:
        after_s: since the fault before it was over.
        kind: `kill`, `kill in start`, `term` or `stop`.
        for_s: how long it stays down; of `kill in start` how long the second process lives, of `stop` how long it
            stands still.
    """

    after_s: float
    kind: str
    for_s: float


_FAULTS: Mapping[str, tuple[int, Sequence[tuple[float, float]]]] = {
    "kill": (9, ((0.0, 0.0), (0.0, 0.0), (0.0, 2.5), (5.5, 6.5))),
    "kill in start": (4, ((0.0, 0.4), (0.3, 1.2), (0.8, 2.5))),
    "term": (3, ((0.0, 0.0), (0.0, 1.5))),
    "stop": (4, ((0.2, 1.0), (1.0, 5.0))),
}
"""Weight and spans of seconds by kind. A due time that is more than 5 s late is a misfire, hence the longest."""


@dataclass(frozen=True, slots=True)
class Round:
    """A part of a torture that starts from nothing."""

    seed: int
    length_s: float


def rounds(seed: int, length_s: float) -> list[Round]:
    """Split a torture into rounds; each can be repeated by its own seed and length."""
    found: list[Round] = []
    while length_s > 0.001:
        found.append(Round(seed + len(found), min(length_s, ROUND_S)))
        length_s -= ROUND_S
    return found


def stream(seed: int, name: str) -> random.Random:
    """Answer random numbers of one actor, so that none depends on how fast another one is."""
    return random.Random(f"taskforge torture {seed} {name}")  # noqa: S311  repeatable is what is wanted


class Wish(NamedTuple):
    """One or several runs that somebody asks for in one call; `again`: the client repeats the call after its answer."""

    workflow: str
    numbers: Sequence[int]
    priority: int
    again: bool


_LOAD: Mapping[str, int] = {"everything": 10, "narrow": 4, "solo": 4, "rented": 3, "flaky": 3, "quick": 4}
"""Workflows that are started by calls, with their weights."""

_MOODS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "work": (("500", 0.05), ("reset", 0.03), ("stall", 0.01), ("slow", 0.05)),
    "once": (("500", 0.03), ("reset", 0.06), ("slow", 0.10)),
    "gate": (("500", 0.04), ("reset", 0.03), ("slow", 0.10)),
}
"""How likely it is that the outside world answers a call like this."""


class Plan:
    """The plan of one round."""

    def __init__(self, this: Round) -> None:
        self.seed = this.seed
        self.length_s = this.length_s

    def stream(self, name: str) -> random.Random:
        """Answer the random numbers of an actor."""
        return stream(self.seed, name)

    def faults(self) -> list[Fault]:
        """Answer what is done to the daemon, in order. The last one is over before the load ends, if all goes well."""
        chance = self.stream("faults")
        low, high = _GAP_S
        scale = min(1.0, self.length_s / _PER_ROUND / high)
        kinds = [kind for kind, (weight, _) in _FAULTS.items() for _ in range(weight)]
        found: list[Fault] = []
        at = 0.0
        while True:
            kind = _first(len(found)) or chance.choice(kinds)
            fault = Fault(chance.uniform(low, high) * scale, kind, chance.uniform(*chance.choice(_FAULTS[kind][1])))
            at += fault.after_s + fault.for_s
            if at > self.length_s and len(found) >= len(_FIRST):
                return found
            found.append(fault)

    def wishes(self, client: int) -> Iterator[Wish]:
        """Yield what a client asks for, for ever. Numbers are unique over clients."""
        chance = self.stream(f"client {client}")
        names = [name for name, weight in _LOAD.items() for _ in range(weight)]
        number = client * 1_000_000
        while True:
            count = chance.choice([2, 3, 5, 8]) if chance.random() < 0.08 else 1
            numbers = range(number + 1, number + 1 + count)
            number += count
            yield Wish(chance.choice(names), numbers, chance.choice([0, 5, 5, 5, 9]), chance.random() < 0.15)

    def mood(self, family: str, name: str, nth: int) -> str:
        """Answer how the outside world takes the n-th call of a path: `ok` mostly."""
        draw = hashlib.blake2b(f"{self.seed}/{family}/{name}/{nth}".encode(), digest_size=8)
        left = int.from_bytes(draw.digest(), "big") / 2**64
        for mood, share in _MOODS.get(family, ()):
            left -= share
            if left < 0:
                return mood
        return "ok"

    def describe(self) -> dict[str, Any]:
        """Answer the plan of the faults for the report."""
        return {"seed": self.seed, "length_s": self.length_s, "faults": [list(one) for one in self.faults()]}


_FIRST = ("kill", "kill in start", "stop", "term")
FAULTS_MIN = len(_FIRST)
"""Faults that there are in any case, however slow the machine is."""


def _first(index: int) -> str:
    """Each kind comes once at first, so that a short torture has them all."""
    return _FIRST[index] if index < len(_FIRST) else ""
