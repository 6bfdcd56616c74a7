# ruff: noqa: ARG001, ARG002, D102 - builders share one signature, and not each needs all of it; `Reader` documents its methods
"""What starts a workflow: the tables of `on:`. What `webhook:` says is in `webhooks`."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from taskforged.engine.model import EVENT_TYPE_MAX
from taskforged.language.clauses import TriggerCondition
from taskforged.language.definition import CronTrigger, EventTrigger, ForEach, ManualTrigger, Trigger, WebhookTrigger
from taskforged.language.durations import parse_instant
from taskforged.language.kinds import InputMap
from taskforged.language.loader import MappingNode, Node, ScalarNode, SequenceNode
from taskforged.language.origin import Origin
from taskforged.language.paths import join
from taskforged.language.shape import (
    Choice,
    Context,
    Duration,
    Field,
    Flag,
    MapOf,
    Schema,
    Shape,
    Text,
    Whole,
)
from taskforged.language.tokens import TOKEN
from taskforged.language.webhooks import WEBHOOK, Hook
from taskforged.schedule import CronError, Policy, ZoneError, cross_check, load_zone, parse_cron

__all__ = ["ITEMS_MAX", "TRIGGER", "Triggers"]

TRIGGER_ROOTS = frozenset({"event", "vars"})

ITEMS_MAX = 1_000
"""Runs that one event may start through the `for_each` of one trigger."""

_CAP_MAX = 1_000
_WINDOW_MAX_S = 366 * 86_400.0


def _build_manual(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> ManualTrigger:
    return ManualTrigger()


MANUAL = Shape("manual", {}, _build_manual, null_is_empty=True)


# --- cron ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Zone:
    """The name of a time zone."""

    def read(self, node: Node, path: str, context: Context) -> str | None:
        name = Text(size_max=64).read(node, path, context)
        try:
            if name is not None:
                load_zone(name)
            return name
        except ZoneError as error:
            context.problem(node, path, str(error))
            return None

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "string", "maxLength": 64, "examples": ["UTC", "Europe/Berlin"]}


@dataclass(frozen=True, slots=True)
class _Instant:
    """A time in RFC 3339, in microseconds since 1970."""

    def read(self, node: Node, path: str, context: Context) -> int | None:
        text = Text(size_max=40).read(node, path, context)
        try:
            return None if text is None else parse_instant(text)
        except ValueError as error:
            context.problem(node, path, str(error))
            return None

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "string", "format": "date-time"}


@dataclass(frozen=True, slots=True)
class _Misfire:
    """`latest`, `all` or `skip`, or a map with `policy`, `window` and `cap`."""

    def read(self, node: Node, path: str, context: Context) -> Policy | None:
        if isinstance(node, MappingNode):
            found: Policy | None = MISFIRE.read(node, path, context)
            return found
        word = _POLICY.read(node, path, context)
        return None if word is None else Policy(word)

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"anyOf": [_POLICY.schema(defs), MISFIRE.schema(defs)]}


def _build_misfire(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Policy:
    policy = values.get("policy", "latest")
    if "cap" in values and policy != "all":
        context.problem(node.entries["cap"][0], join(path, "cap"), "'cap' has a meaning only with policy all")
    if "window" in values and policy == "skip":
        context.problem(node.entries["window"][0], join(path, "window"), "'window' has no meaning with policy skip")
    return Policy(policy, round(values.get("window", 0.0) * 1_000_000), values.get("cap", _CAP_MAX))


_POLICY = Choice(("latest", "all", "skip"))
MISFIRE = Shape(
    "misfire",
    {
        "policy": Field(_POLICY, "What becomes of missed due times; `latest` by default."),
        "window": Field(Duration(1, _WINDOW_MAX_S), "What is older is not caught up; without limit by default."),
        "cap": Field(Whole(1, _CAP_MAX), "Most due times that `all` catches up at once; 1,000 by default."),
    },
    _build_misfire,
)


def _build_cron(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> CronTrigger | None:
    start, end = values.get("start", 0), values.get("end", 0)
    if start and end and start >= end:
        context.problem(node.entries["end"][0], join(path, "end"), "must be later than 'start'")
    trigger = CronTrigger(
        "",
        values["schedule"],
        seconds=values.get("seconds", False),
        zone=values.get("timezone", "UTC"),
        gap=values.get("gap", "shift"),
        fold=values.get("fold", "first"),
        jitter_s=values.get("jitter", 0.0),
        start_at=start,
        end_at=end,
        policy=values.get("misfire", Policy()),
        overlap=values.get("overlap", "skip"),
    )
    try:
        cross_check(parse_cron(trigger.expression, seconds=trigger.seconds, seed="check"))
    except CronError as error:
        where = node.entries["schedule"][1]
        assert isinstance(where, ScalarNode)
        context.templates.compiler.problem(
            Origin(join(path, "schedule"), where, context.templates.document), error.offset, error.message
        )
    return trigger


def _build_dst(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> dict[str, str]:
    return values


DST = Shape(
    "dst",
    {
        "gap": Field(Choice(("shift", "skip")), "Of a due time that the clock leaves out; `shift` by default."),
        "fold": Field(Choice(("first", "last", "both")), "Of one that the clock shows twice; `first` by default."),
    },
    _build_dst,
)


@dataclass(frozen=True, slots=True)
class _Cron:
    """A map, or the expression alone."""

    def read(self, node: Node, path: str, context: Context) -> CronTrigger | None:
        if isinstance(node, ScalarNode):
            node = MappingNode(node.start, {"schedule": (node, node)})
        found: CronTrigger | None = CRON.read(node, path, context)
        return found

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"anyOf": [{"type": "string"}, CRON.schema(defs)]}


def _build_cron_map(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> CronTrigger | None:
    return _build_cron({**values, **values.get("dst", {})}, node, path, context)


CRON = Shape(
    "cron",
    {
        "schedule": Field(Text(size_max=256), "minute hour day month weekday, or @daily and the like.", required=True),
        "seconds": Field(Flag(), "The expression has six fields, the seconds first."),
        "timezone": Field(_Zone(), "IANA name; `UTC` by default."),
        "misfire": Field(_Misfire(), "What becomes of due times that were missed; `latest` by default."),
        "overlap": Field(
            Choice(("skip", "queue", "cancel_running", "allow")), "When a run is still going; `skip` by default."
        ),
        "jitter": Field(Duration(0.001, 86_400), "Fires later by a constant below this that differs between triggers."),
        "dst": Field(DST, "What becomes of due times when the clocks change."),
        "start": Field(_Instant(), "Nothing is due earlier; RFC 3339."),
        "end": Field(_Instant(), "Nothing is due then or later; RFC 3339."),
    },
    _build_cron_map,
)


# --- events ----------------------------------------------------------------------------------------------------------

_EVENT_PATTERN = re.compile(r"[A-Za-z0-9*][A-Za-z0-9._/*-]*\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Pattern:
    """The type of an event, perhaps with `*`."""

    def read(self, node: Node, path: str, context: Context) -> str | None:
        text = Text(size_max=EVENT_TYPE_MAX).read(node, path, context)
        if text is not None and not _EVENT_PATTERN.match(text):
            message = f"{text[:80]!r} is no type of an event; write for example order.paid, or order.* for all of them"
            context.problem(node, path, message)
            return None
        return text

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "string", "maxLength": EVENT_TYPE_MAX, "examples": ["order.paid", "order.*", "run.failed"]}


def _build_event(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> str:
    kind: str = values["type"]
    return kind


EVENT = Shape(
    "event",
    {"type": Field(_Pattern(), "Type of the event; `*` stands for any text.", required=True)},
    _build_event,
)


# --- for_each --------------------------------------------------------------------------------------------------------


_LABEL = re.compile(r"""\blabels\s*(?:\.\s*\??\s*(\w+)|\[\s*["']([^"']+)["']\s*\])""", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Items:
    """The list that a trigger starts runs for: bare CEL, one `${{ }}`, or a list."""

    def read(self, node: Node, path: str, context: Context) -> ForEach | None:
        names = context.names({"namespaces"})
        templates = context.templates
        if isinstance(node, SequenceNode):
            return ForEach(templates.tree(node, path, context.names()), is_namespaces=False)
        if not isinstance(node, ScalarNode) or not isinstance(node.value, str):
            context.problem(node, path, "must be an expression that answers a list, for example event.body.commits")
            return None
        is_whole = node.text.strip().startswith("${{")
        if is_whole:
            expression = templates.tree(node, path, names)
        else:
            found = templates.compiler.compile(node.text, Origin(path, node, templates.document), names)
            if found is None:
                return None
            expression = found
        labels = frozenset(found[1] or found[2] for found in _LABEL.finditer(node.text))
        return ForEach(expression, is_namespaces=_reads_namespaces(node.text), labels=labels)

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"anyOf": [{"type": "string"}, {"type": "array"}]}


def _reads_namespaces(text: str) -> bool:
    """Whether an expression reads the variable `namespaces`, and not a field of that name of something else."""
    words = [token[0] for token in TOKEN.finditer(text) if not token[0].isspace()]
    places = [at for at, word in enumerate(words) if word == "namespaces"]
    return any(words[max(0, at - 1)] != "." and words[max(0, at - 2) : at] != [".", "?"] for at in places)


# --- a trigger -------------------------------------------------------------------------------------------------------


_RULES = {"condition": "if", "input": "input", "for_each": "for_each"}


def _build_trigger(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Trigger | None:
    """Answer the trigger without its id, which `Triggers` knows."""
    rules: dict[str, Any] = {
        "condition": values.get("if"),
        "input": values.get("input"),
        "for_each": values.get("for_each"),
    }
    if "webhook" in values:
        hook: Hook = values["webhook"]
        return WebhookTrigger(
            *("", hook.path, hook.verify),
            delivery_header=hook.delivery_header,
            wait_s=hook.wait_s,
            rate=hook.rate,
            **rules,
        )
    if "cron" in values:
        cron: CronTrigger = values["cron"]
        return dataclasses.replace(cron, **rules)
    if "event" in values:
        return EventTrigger("", values["event"], **rules)
    for key in ("if", "input", "for_each"):
        if key in values:
            context.problem(
                node.entries[key][0], join(path, key), f"{key!r} is possible only with webhook, cron, event"
            )
    return ManualTrigger()


@dataclass(frozen=True, slots=True)
class _Trigger:
    """A trigger; `input` sees `item` and `index` where there is a `for_each`."""

    def read(self, node: Node, path: str, context: Context) -> Trigger | None:
        roots = context.roots
        if isinstance(node, MappingNode) and "for_each" in node.entries:
            context.roots = roots | {"item", "index"}
        found: Trigger | None = TRIGGER.read(node, path, context)
        context.roots = roots
        return found

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return TRIGGER.schema(defs)


@dataclass(frozen=True, slots=True)
class _Once:
    """What is evaluated once for all items: `item` and `index` are not known there."""

    inner: Any

    def read(self, node: Node, path: str, context: Context) -> Any:
        roots, context.roots = context.roots, context.roots - {"item", "index"}
        found = self.inner.read(node, path, context)
        context.roots = roots
        return found

    def schema(self, defs: dict[str, Schema]) -> Schema:
        found: Schema = self.inner.schema(defs)
        return found


TRIGGER = Shape(
    "trigger",
    {
        "manual": Field(MANUAL, "People and programs start it."),
        "webhook": Field(WEBHOOK, "A POST to /hooks/<namespace>/<path> starts it."),
        "cron": Field(_Cron(), "Due times start it."),
        "event": Field(EVENT, "Internal events start it."),
        "if": Field(_Once(TriggerCondition()), "The trigger matches when it is true; sees `event`."),
        "for_each": Field(_Once(_Items()), "One run for each item; sees `event` and `namespaces`."),
        "input": Field(InputMap(), "The run's input, made from `event`, with for_each also from `item`."),
    },
    _build_trigger,
    one_of=("manual", "webhook", "cron", "event"),
)


_BY_ID = MapOf(_Trigger(), r"^[a-z][a-z0-9_-]{0,62}$", "a trigger id: a-z, then a-z, 0-9, _ and -, at most 63")


@dataclass(frozen=True, slots=True)
class Triggers:
    """Triggers by id. The id `manual` belongs to the trigger that every workflow has."""

    def read(self, node: Node, path: str, context: Context) -> dict[str, Trigger]:
        roots, context.roots = context.roots, TRIGGER_ROOTS
        found = _BY_ID.read(node, path, context)
        context.roots = roots
        triggers = {key: dataclasses.replace(one, id=key) for key, one in found.items() if one is not None}
        if "manual" in triggers and not isinstance(triggers["manual"], ManualTrigger):
            context.problem(node, join(path, "manual"), "the id 'manual' is reserved for the manual trigger")
        self._check_paths(triggers, node, path, context)
        return triggers

    def _check_paths(self, triggers: dict[str, Trigger], node: Node, path: str, context: Context) -> None:
        """One path is one door: whoever proves himself there does so in one way."""
        doors: dict[str, WebhookTrigger] = {}
        for key, one in triggers.items():
            if not isinstance(one, WebhookTrigger):
                continue
            first = doors.setdefault(one.path, one)
            if (first.verify, first.delivery_header, first.rate) != (one.verify, one.delivery_header, one.rate):
                message = f"trigger {first.id!r} has the same path; {_DOOR} must be the same, too"
                at = node.entries[key][0] if isinstance(node, MappingNode) else node
                context.problem(at, join(path, key), message)

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return _BY_ID.schema(defs)


_DOOR = "verify, delivery_header and rate_limit"
