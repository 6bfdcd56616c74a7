"""The workflows of the load. What they share stands in them in capitals; `BASE` is the effect server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

__all__ = [
    "HOOK_SECRET",
    "SCHEDULED",
    "TENANT",
    "Limit",
    "Source",
    "limits",
    "sources",
    "without_schedules",
]

HOOK_SECRET = "nobody-knows"  # noqa: S105  of a daemon that lives for minutes
TENANT = "tenant"
"""A namespace with limits."""


class Source(NamedTuple):
    """A definition, and where it belongs."""

    namespace: str
    text: str


class Limit(NamedTuple):
    """How many may be at it at once. `of`: `steps` of a queue or namespace, `runs` of a namespace or group."""

    name: str
    of: str
    most: int


_NUMBER = "input: {type: object, required: [n], properties: {n: {type: integer}}}"
_RETRY = "retry: {max_attempts: 6, strategy: exponential, delay: 40ms, max_delay: 500ms, jitter: full}"

CHILD = """
name: child
NUMBER
steps:
  - id: inside
    http: {method: POST, url: "BASE/work/inside?ms=20", json: {n: "${{ input.n }}"}}
    timeout: 4s
    RETRY
  - id: broken
    if: input.n % 7 == 0
    fail: sometimes
output: {n: "${{ input.n }}"}
"""

_SHELL = """
  - id: program
    needs: [left]
    shell: {command: [/bin/sh, -c, 'sleep 0.03; echo "$TASKFORGE_IDEMPOTENCY_KEY"']}
"""
_NO_SHELL = """
  - id: program
    needs: [left]
    transform: nothing may be executed here
"""

EVERYTHING = """
name: everything
NUMBER
concurrency: {group: "g${{ input.n % 20 }}", limit: 4}
timeout: 10m
defaults:
  RETRY
  timeout: 4s
steps:
  - id: prepare
    transform: {n: "${{ input.n }}"}
  - id: left
    needs: prepare
    http: {method: POST, url: "BASE/work/left?ms=40", json: {n: 1}}
    compensate: {http: {method: POST, url: "BASE/work/undo"}}
  - id: right
    needs: prepare
    http: {method: POST, url: "BASE/work/right?ms=10", json: {n: 2}}
    compensate: {http: {method: POST, url: "BASE/work/undo"}}
  - id: many
    needs: [left, right]
    for_each: [1, 2, 3, 4]
    max_parallel: 2
    steps:
      - id: twice
        transform: {x: "${{ item * 2 }}"}
      - id: send
        http: {method: POST, url: "BASE/work/send", json: {x: "${{ steps.twice.output.x }}"}}
SHELL
  - id: once
    needs: [right]
    http: {method: POST, url: "BASE/once/charge?ms=40"}
    effect: once
    continue_on_error: true
  - id: sub
    needs: [prepare]
    workflow: {name: child, input: {n: "${{ input.n }}"}}
    continue_on_error: true
  - id: route
    needs: [prepare]
    switch:
      - if: input.n % 2 == 0
        steps:
          - id: even
            http: {method: POST, url: "BASE/work/even"}
      - steps:
          - id: odd
            http: {url: "BASE/read/odd"}
  - id: nap
    needs: [many, program]
    sleep: ${{ string(100 + input.n % 300) + "ms" }}
  - id: ask
    needs: [nap]
    wait: {approval: "Go on with ${{ input.n }}?", timeout: 9m}
  - id: word
    needs: [once]
    wait: {signal: word, timeout: 9m}
  - id: tell
    needs: [ask, word, sub, route]
    if: always()
    event: {type: torture.told, data: {n: "${{ input.n }}"}}
  - id: last
    needs: [tell]
    if: success() || failure()
    transform: {left: "${{ steps.left.state }}", sub: "${{ steps.sub.state }}"}
  - id: sometimes
    needs: [last]
    if: input.n % 5 == 0
    http: {url: "BASE/dead"}
    retry: {max_attempts: 2, strategy: fixed, delay: 20ms, jitter: none}
on_failure:
  - id: alert
    http: {method: POST, url: "BASE/work/alert", json: {code: "${{ error.code }}"}}
on_cancel:
  - id: tidy
    http: {method: POST, url: "BASE/work/tidy"}
output: ${{ steps.last.output }}
"""

QUICK = """
name: quick
NUMBER
steps:
  - id: add
    transform: {n: "${{ input.n + 1 }}"}
  - id: act
    http: {method: POST, url: "BASE/work/act"}
    timeout: 4s
    RETRY
output: ${{ steps.add.output }}
"""

NARROW = """
name: narrow
queue: narrow
NUMBER
steps:
  - id: pass
    http: {method: POST, url: "BASE/gate/queue-narrow?ms=30"}
    timeout: 6s
    RETRY
"""

SOLO = """
name: solo
NUMBER
concurrency: {group: "solo-${{ input.n % 2 }}", limit: 1}
steps:
  - id: first
    http: {method: POST, url: "BASE/gate/group-solo-${{ input.n % 2 }}?ms=20"}
    timeout: 6s
    RETRY
  - id: nap
    sleep: 30ms
  - id: second
    http: {method: POST, url: "BASE/gate/group-solo-${{ input.n % 2 }}?ms=20"}
    timeout: 6s
    RETRY
"""

RENTED = """
name: rented
NUMBER
steps:
  - id: a
    http: {method: POST, url: "BASE/gate/steps-tenant?ms=20"}
    timeout: 6s
    RETRY
  - id: b
    http: {method: POST, url: "BASE/gate/steps-tenant?ms=20"}
    timeout: 6s
    RETRY
"""

FLAKY = """
name: flaky
NUMBER
steps:
  - id: before
    http: {method: POST, url: "BASE/work/before"}
    timeout: 4s
    RETRY
  - id: act
    http: {method: POST, url: "BASE/flaky/${{ input.n }}"}
    timeout: 4s
    retry: {max_attempts: 2, strategy: fixed, delay: 20ms, jitter: none}
"""

HOOKED = """
name: hooked
on:
  thing:
    webhook:
      path: things
      verify: {scheme: hmac, secret: HOOK, header: x-signature}
      delivery_header: x-delivery
    input: {n: "${{ event.body.n }}"}
NUMBER
steps:
  - id: take
    http: {method: POST, url: "BASE/work/take", json: {n: "${{ input.n }}"}}
    timeout: 4s
    RETRY
  - id: begin
    event: {type: chain.begun, data: {n: "${{ input.n }}"}}
"""

LINK = """
name: link
on:
  begun:
    event: {type: chain.begun}
    input: {n: "${{ event.body.n }}"}
NUMBER
steps:
  - id: nap
    sleep: 20ms
"""

HEARD = """
name: heard
on:
  exact: {event: {type: torture.published}}
  even:
    event: {type: torture.published}
    if: event.body.n % 2 == 0
steps:
  - id: look
    transform: {n: "${{ event.body.n }}"}
"""

_TICKS = """
name: ticks
TRIGGERS
steps:
  - id: tick
    http: {method: POST, url: "BASE/tick", json: {due: "DUE"}}
    timeout: 4s
    RETRY
"""

_MIXED = """
name: mixed
TRIGGERS
steps:
  - id: nap
    sleep: 700ms
"""

SCHEDULED = {
    "ticks/faithful": ("* * * * * *", "all", "allow"),
    "mixed/latest": ("*/2 * * * * *", "latest", "allow"),
    "mixed/none": ("*/3 * * * * *", "skip", "skip"),
    "mixed/line": ("*/5 * * * * *", "all", "queue"),
    "mixed/newest": ("*/4 * * * * *", "latest", "cancel_running"),
}
"""Cron triggers: expression, misfire, overlap."""


def limits() -> list[Limit]:
    """Answer the limits that the load works against."""
    return [
        Limit("queue-narrow", "steps", 1),
        Limit("steps-tenant", "steps", 1),
        Limit("group-solo-0", "runs", 1),
        Limit("group-solo-1", "runs", 1),
        Limit("runs-tenant", "runs", 2),
    ]


def sources(base: str, *, shell: bool) -> Iterator[Source]:
    """Yield the definitions in an order in which they can be applied.

    Args:
        base: URL of the effect server.
        shell: whether there is a program that shell steps may execute.
    """
    program = (_SHELL if shell else _NO_SHELL).strip("\n")
    for text in (CHILD, EVERYTHING, QUICK, NARROW, SOLO, FLAKY, HOOKED, LINK, HEARD):
        yield Source("", _filled(text, base, SHELL=program))
    yield Source(TENANT, _filled(RENTED, base))
    for text in (_TICKS, _MIXED):
        triggers = "\n".join(["on:", *_crons(text)])
        yield Source("", _filled(text, base, TRIGGERS=triggers, DUE="${{ event.due_time }}"))


def without_schedules(base: str) -> Iterator[Source]:
    """Yield versions without triggers: that ends the schedules, and closes their ledgers."""
    for text in (_TICKS, _MIXED):
        yield Source("", _filled(text, base, TRIGGERS="", DUE="never"))


def _filled(text: str, base: str, **places: str) -> str:
    for place, content in {**places, "NUMBER": _NUMBER, "RETRY": _RETRY, "BASE": base}.items():
        text = text.replace(place, content)
    return text


def _crons(text: str) -> Iterator[str]:
    workflow = "ticks" if text is _TICKS else "mixed"
    for name, (schedule, misfire, overlap) in SCHEDULED.items():
        owner, _, key = name.partition("/")
        if owner == workflow:
            policy = f"seconds: true, misfire: {misfire}, overlap: {overlap}"
            yield f"  {key}: {{cron: {{schedule: '{schedule}', {policy}}}}}"
