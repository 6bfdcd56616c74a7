"""Random definitions in the language itself: every kind of step, small, and often odd on purpose."""

from __future__ import annotations

import json
from random import Random
from typing import Any

__all__ = ["CRON_S", "QUEUES", "SIGNALS", "library"]

SIGNALS = ("go", "stop")
QUEUES = ("default", "narrow", "late")
CRON_S = 600
"""All schedules are due every ten minutes."""

_DEPTH_MAX = 2
_EFFECT = {"method": "POST", "url": "http://outside.test/effect"}


def library(rng: Random) -> dict[str, str]:
    """Answer the definitions of one world by name; a workflow may run those that come after it."""
    names = [f"w{number}" for number in range(rng.randint(2, 4))]
    rules = [
        _limits(rng, group) for group in ("shared", "n-${{ input.?n.orValue(0) }}")
    ]  # who shares a group has to say the same of it
    authors = [_Author(rng, name, names[at + 1 :], rules) for at, name in enumerate(names)]
    return {
        name: json.dumps(author.definition(at)) for at, (name, author) in enumerate(zip(names, authors, strict=True))
    }


def _limits(rng: Random, group: str) -> dict[str, Any]:
    on_limit = rng.choice(("queue", "queue", "skip", "cancel_running"))
    return {"group": group, "limit": rng.choice((1, 2)), "on_limit": on_limit}


class _Author:
    def __init__(self, rng: Random, name: str, others: list[str], rules: list[dict[str, Any]]) -> None:
        self._rng = rng
        self._name = name
        self._others = others
        self._rules = rules
        self._count = 0
        self._is_main = True
        self._listens = False

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

    def definition(self, at: int) -> dict[str, Any]:
        rng = self._rng
        made: dict[str, Any] = {
            "name": self._name,
            "input": {"type": "object", "properties": {"n": {"type": "integer"}}},
            "on": self._triggers(at),
            "queue": rng.choice(QUEUES),
            "priority": rng.choice((0, 5, 5, 9)),
        }
        made["steps"] = self._steps(0, rng.randint(2, 5))
        if self._chance(0.5):
            made["concurrency"] = rng.choice((*self._rules, _limits(rng, f"own-{self._name}")))
        if self._chance(0.2):
            made["timeout"] = rng.choice(("3s", "30s", "5m"))
        for key in ("on_failure", "on_cancel"):
            if self._chance(0.35):
                self._is_main = False  # what is done there is not undone
                made[key] = self._steps(1, rng.randint(1, 2))
        return made

    def _triggers(self, at: int) -> dict[str, Any]:
        rng = self._rng
        made: dict[str, Any] = {"hand": {"manual": {}}}
        if self._chance(0.5):
            made["hook"] = {"webhook": {"path": "hook", "verify": {"scheme": "none"}, "delivery_header": "x-delivery"}}
        if at == 0 and self._chance(0.5):
            made["tick"] = {
                "cron": {
                    "schedule": "*/10 * * * *",
                    "misfire": rng.choice(("latest", "skip", {"policy": "all", "cap": 3})),
                    "overlap": rng.choice(("skip", "queue", "cancel_running", "allow")),
                }
            }
        if at and self._chance(0.5):  # it does not publish what it listens to, so that nothing goes in circles
            made["news"] = {"event": {"type": rng.choice(("news", "run.failed"))}}
            self._listens = True
            if made["news"]["event"]["type"] == "run.failed":
                made["news"]["if"] = 'event.body.workflow == "w0"'
        return made

    # --- steps -------------------------------------------------------------------------------------------------------

    def _steps(self, depth: int, count: int) -> list[dict[str, Any]]:
        steps = [self._step(depth) for _ in range(count)]
        if self._chance(0.4):
            for index, step in enumerate(steps):
                before = [other["id"] for other in steps[:index] if self._chance(0.4)]
                step["needs"] = before
        return steps

    def _step(self, depth: int) -> dict[str, Any]:
        self._count += 1
        key = f"s{self._count}"
        step: dict[str, Any] = {"id": key, **self._kind(depth)}
        if self._chance(0.15):
            step["if"] = self._rng.choice(("true", "false", "always()", "failure()"))
        if self._chance(0.15):
            step["continue_on_error"] = True
        if "http" in step and self._is_main and self._chance(0.2):
            step["compensate"] = self._rng.choice(({"http": _EFFECT}, {"event": {"type": "undone"}}))
        fans = "http" in step or "workflow" in step or "sleep" in step or "steps" in step
        if depth < _DEPTH_MAX and fans and self._chance(0.2):
            step["for_each"] = list(range(self._rng.choice((0, 1, 2, 2) if "http" not in step else (0, 1, 3, 7))))
            step["max_parallel"] = self._rng.choice((1, 2, 100))
            step["max_failures"] = self._rng.choice((0, 0, 2))
        return step

    def _kind(self, depth: int) -> dict[str, Any]:
        rng, draw = self._rng, self._rng.random()
        if draw < 0.5:
            return self._effect()
        if draw < 0.58:
            return {"transform": {"n": "${{ input.?n.orValue(0) + 1 }}"}}
        if draw < 0.66:
            return {"sleep": rng.choice(("1ms", "2s", "40s"))}
        if draw < 0.74:
            return self._wait()
        if draw < 0.8 and self._others:
            return {"workflow": {"name": rng.choice(self._others), "input": {"n": 1}}}
        if draw < 0.86:
            return {"event": {"type": "gossip" if self._listens else rng.choice(("news", "gossip")), "data": {"n": 1}}}
        if draw < 0.88:
            return {"fail": {"message": "on purpose"}}
        if depth >= _DEPTH_MAX:
            return self._effect()
        if draw < 0.94:
            return {"steps": self._steps(depth + 1, rng.randint(1, 3))}
        cases = [{"if": rng.choice(("true", "false")), "steps": self._steps(depth + 1, 1)}]
        return {"switch": [*cases, {"steps": self._steps(depth + 1, rng.randint(1, 2))}]}

    def _effect(self) -> dict[str, Any]:
        rng = self._rng
        made: dict[str, Any] = {"http": dict(_EFFECT)}
        if self._chance(0.2):
            made["http"]["headers"] = {"x-once": "yes"}
            made["effect"] = "once"
        if self._chance(0.5):
            made["timeout"] = rng.choice(("1s", "30s"))
        if "effect" not in made and self._chance(0.6):
            made["retry"] = {
                "max_attempts": rng.choice((1, 2, 4)),
                "delay": rng.choice(("1ms", "500ms", "5s")),
                "strategy": rng.choice(("fixed", "linear", "exponential")),
                "jitter": rng.choice(("none", "full", "equal")),
            }
        return made

    def _wait(self) -> dict[str, Any]:
        rng = self._rng
        made: dict[str, Any] = {
            "wait": {"signal": rng.choice(SIGNALS)} if self._chance(0.5) else {"approval": "May it?"}
        }
        if self._chance(0.6):
            made["wait"]["timeout"] = rng.choice(("500ms", "30s"))
            made["wait"]["on_timeout"] = rng.choice(("fail", "continue"))
        return made
