"""What a definition compiles to: the engine's model plus everything around a run (triggers, input contract)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from taskforged.engine.model import Expression, Json, WorkflowModel
from taskforged.schedule import Policy, Schedule, jitter_us, parse_cron

__all__ = [
    "CronTrigger",
    "Definition",
    "EventTrigger",
    "ForEach",
    "InputContract",
    "ManualTrigger",
    "Rate",
    "Retention",
    "Source",
    "Trigger",
    "Verify",
    "WebhookTrigger",
]


class InputContract(Protocol):
    """The `input:` schema of a definition, compiled."""

    def accept(self, value: Json) -> Json:
        """Answer the input with defaults filled in; the argument is not changed.

        Raises:
            errors.InvalidArgumentError: it does not fit; one violation per fault, `path` is the JSON path (`$.tag`).
        """


@dataclass(frozen=True, slots=True)
class Verify:
    """How a webhook's sender is proved.

    Attributes:
        scheme: `github`, `standard-webhooks`, `stripe`, `slack`, `gitlab`, `token`, `hmac`, `basic` or `none`.
        secrets: names of the namespace's secrets, any of which may prove the sender; empty for `none`.
        header: lower-case name of the header with the signature or the token.
        query: parameter of the URL with the token (`token`), instead of a header.
        algorithm: `sha256`, `sha1` or `sha512` (`hmac`).
        encoding: `hex` or `base64` (`hmac`).
        prefix: text before the signature or token in the header, for example `sha256=` or `Bearer `.
        signed: what is signed (`hmac`): text with `{body}`, and perhaps `{timestamp}` and `{id}`.
        timestamp_header: lower-case name of the header with the time that is signed, in seconds since 1970.
        id_header: lower-case name of the header with the delivery's id, where that is signed.
        tolerance_s: how far a signed time may be from ours.
        username: of `basic`; the secret is the password.
    """

    scheme: str
    secrets: tuple[str, ...] = ()
    header: str = ""
    query: str = ""
    algorithm: str = "sha256"
    encoding: str = "hex"
    prefix: str = ""
    signed: str = "{body}"
    timestamp_header: str = ""
    id_header: str = ""
    tolerance_s: float = 300.0
    username: str = ""


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` deliveries in `per_s` seconds."""

    count: int
    per_s: float


@dataclass(frozen=True, slots=True)
class ForEach:
    """One run for each item of a list.

    Attributes:
        items: evaluates to the list; sees what `input` sees, and `namespaces`.
        is_namespaces: the items are namespaces, and each run belongs to the one of its item.
        labels: names of labels that the expression asks for; a namespace without one has an empty text for it.
    """

    items: Expression
    is_namespaces: bool
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ManualTrigger:
    """The entrypoint for people and programs; every workflow has it, declared or not."""

    id: str = "manual"
    kind: str = "manual"


@dataclass(frozen=True, slots=True)
class WebhookTrigger:
    """`POST /hooks/<namespace>/<path>`.

    Attributes:
        id: key in the definition's `on:` map.
        path: below the namespace, for example `github`; may contain `/`.
        verify: how the sender is proved.
        condition: the trigger matches when it is true; sees `event`.
        input: evaluates to the run's input; sees `event`. None means an empty object.
        for_each: one run for each item.
        delivery_header: lower-case name of the header with the sender's delivery id; empty when there is none.
        wait_s: the sender is answered with the run's output when it has ended within that time; None: at once.
        rate: how many deliveries the path takes.
    """

    id: str
    path: str
    verify: Verify
    condition: Expression | None = None
    input: Expression | None = None
    for_each: ForEach | None = None
    delivery_header: str = ""
    wait_s: float | None = None
    rate: Rate | None = None
    kind: str = "webhook"


_LATEST = Policy()


@dataclass(frozen=True, slots=True)
class CronTrigger:
    """Due times.

    Attributes:
        id: key in the definition's `on:` map.
        expression: as it is written; `schedule` knows its grammar.
        seconds: it has six fields, the seconds first.
        zone: IANA name.
        gap: what becomes of a due time that the clock skips: `shift` or `skip`.
        fold: of one that the clock shows twice: `first`, `last` or `both`.
        jitter_s: each due time fires later by a constant that is less than this and differs between triggers.
        start_at: no due time before; microseconds, 0: none.
        end_at: no due time then or later; 0: none.
        policy: what becomes of due times that were missed.
        overlap: when a run is still going: `skip`, `queue`, `cancel_running` or `allow`.
    """

    id: str
    expression: str
    seconds: bool = False
    zone: str = "UTC"
    gap: str = "shift"
    fold: str = "first"
    jitter_s: float = 0.0
    start_at: int = 0
    end_at: int = 0
    policy: Policy = _LATEST
    overlap: str = "skip"
    condition: Expression | None = None
    input: Expression | None = None
    for_each: ForEach | None = None
    kind: str = "cron"

    def schedule(self, identity: str) -> Schedule:
        """Answer the schedule of the trigger that `identity` names, for example `default/backup/nightly`."""
        cron = parse_cron(self.expression, seconds=self.seconds, seed=identity)
        delay = jitter_us(identity, self.jitter_s) if self.jitter_s else 0
        return Schedule(cron, self.zone, self.gap, self.fold, self.start_at, self.end_at, delay)


@dataclass(frozen=True, slots=True)
class EventTrigger:
    """Internal events of a type.

    Attributes:
        id: key in the definition's `on:` map.
        type: as published, for example `order.paid`; `*` stands for any text.
    """

    id: str
    type: str
    condition: Expression | None = None
    input: Expression | None = None
    for_each: ForEach | None = None
    kind: str = "event"


Source: TypeAlias = WebhookTrigger | CronTrigger | EventTrigger
"""What starts runs by itself."""

Trigger: TypeAlias = ManualTrigger | Source


@dataclass(frozen=True, slots=True)
class Retention:
    """How long ended runs are kept.

    Attributes:
        age_s: older ones go; 0: never, None: as the daemon is set.
        count: all but the newest so many go; 0: none, None: as the daemon is set.
    """

    age_s: int | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """A compiled definition.

    Attributes:
        name: of the workflow.
        description: text for people.
        labels: for selection.
        model: what the engine executes.
        triggers: entrypoints by id; `manual` is always there.
        input: the input contract.
        secrets: names of all secrets that are referred to.
        content_hash: SHA-256, in hex, of the definition normalised (comments, formatting and key order do not count).
        profile: the expression profile, `cel/1`.
        concurrency: the group as it is written, its limit and `on_limit`, so that definitions can be compared.
        retention: how long ended runs are kept, if it says so.
    """

    name: str
    description: str
    labels: Mapping[str, str]
    model: WorkflowModel
    triggers: Mapping[str, Trigger]
    input: InputContract
    secrets: frozenset[str]
    content_hash: str
    profile: str
    concurrency: tuple[str, int, str] | None = None
    retention: Retention | None = None

    def sources(self) -> dict[str, Source]:
        """Answer the triggers that start runs by themselves: all but the manual one."""
        return {key: one for key, one in self.triggers.items() if not isinstance(one, ManualTrigger)}
