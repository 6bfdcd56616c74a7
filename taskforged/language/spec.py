# ruff: noqa: ARG001, ARG002 - readers and builders share one signature, and not each needs all of it
"""The top level of a definition, and what the whole becomes in the engine's model.

The order of a table is the order of reading, so what others refer to comes first: `vars` and `input` before any
expression, `defaults` before the steps, steps before `output`. Steps are in `steps`, what they do in `kinds`, what
starts a workflow in `triggers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taskforged.engine.model import PRIORITY, Block, Concurrency, Json, OnLimit, WorkflowModel
from taskforged.language.definition import ManualTrigger, Retention, Trigger
from taskforged.language.input import Contract, compile_schema
from taskforged.language.kinds import NAME, read_contract
from taskforged.language.loader import MappingNode, Node, ScalarNode, SequenceNode, to_json
from taskforged.language.paths import join
from taskforged.language.shape import (
    Age,
    Choice,
    Context,
    Duration,
    Field,
    MapOf,
    Schema,
    Shape,
    Template,
    TemplateTree,
    Text,
    Whole,
)
from taskforged.language.steps import DEFAULTS, Phase, Steps
from taskforged.language.triggers import Triggers

__all__ = ["CONCURRENCY", "RETENTION", "RUN_ROOTS", "WORKFLOW", "Workflow"]

RUN_ROOTS = frozenset({"event", "input", "run", "vars", "workflow"})


@dataclass(frozen=True, slots=True)
class Workflow:
    """What the top level of a document says."""

    name: str
    description: str
    labels: dict[str, str]
    model: WorkflowModel
    triggers: dict[str, Trigger]
    input: Contract
    concurrency: tuple[str, int, str] | None
    retention: Retention | None


# --- the top level ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Vars:
    """Constants."""

    def read(self, node: Node, path: str, context: Context) -> dict[str, Json]:
        if not isinstance(node, MappingNode):
            context.problem(node, path, "must be a map of constants")
            return {}
        _refuse_expressions(node, path, context)
        static: dict[str, Json] = to_json(node)
        context.templates.compiler.static = static
        return static

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "object"}


def _refuse_expressions(node: Node, path: str, context: Context) -> None:
    if isinstance(node, ScalarNode):
        if "${{" in node.text:
            context.problem(node, path, "vars are constants; an expression is not possible here")
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.items):
            _refuse_expressions(item, join(path, index), context)
    else:
        for key, (_, value) in node.entries.items():
            _refuse_expressions(value, join(path, key), context)


@dataclass(frozen=True, slots=True)
class _Input:
    """A JSON Schema of the input."""

    def read(self, node: Node, path: str, context: Context) -> Contract | None:
        contract = read_contract(node, path, context, "input")
        if contract is not None:
            context.templates.compiler.input_schema = contract.schema
        return contract

    def schema(self, defs: dict[str, Schema]) -> Schema:
        meta = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
        return {"allOf": [meta, {"type": "object", "required": ["type"], "properties": {"type": {"const": "object"}}}]}


@dataclass(frozen=True, slots=True)
class _Limit:
    """What `concurrency:` says, for the engine and as it is written."""

    value: Concurrency
    said: tuple[str, int, str]


def _build_concurrency(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> _Limit:
    group = node.entries["group"][1]
    assert isinstance(group, ScalarNode)
    if not group.text.strip():
        context.problem(group, join(path, "group"), "must not be empty")
    value = Concurrency(values["group"], values.get("limit", 1), OnLimit(values.get("on_limit", OnLimit.QUEUE)))
    return _Limit(value, (group.text.strip(), value.limit, value.on_limit.value))


CONCURRENCY = Shape(
    "concurrency",
    {
        "group": Field(Template(), "Name of the group, across workflows; sees `input` and `event`.", required=True),
        "limit": Field(Whole(1, 10_000), "Runs of the group at the same time; 1 by default."),
        "on_limit": Field(Choice(tuple(OnLimit)), "What becomes of one more; `queue` by default."),
    },
    _build_concurrency,
)


def _build_retention(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Retention:
    if not values:
        context.problem(node, path, "must say an `age`, a `count` or both")
    return Retention(values.get("age"), values.get("count"))


RETENTION = Shape(
    "retention",
    {
        "age": Field(Age(), "Ended runs that are older are deleted; `forever` keeps them."),
        "count": Field(Whole(0, 1_000_000_000), "Ended runs beyond the newest so many are deleted; 0 keeps all."),
    },
    _build_retention,
)


def _build_workflow(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Workflow:
    limit: _Limit | None = values.get("concurrency")
    model = WorkflowModel(
        name=values["name"],
        main=values["steps"],
        on_failure=values.get("on_failure", Block()),
        on_cancel=values.get("on_cancel", Block()),
        cancel_grace_s=values.get("cancel_grace", 60.0),
        output=values.get("output"),
        timeout_s=values.get("timeout"),
        concurrency=None if limit is None else limit.value,
        queue=values.get("queue", "default"),
        priority=values.get("priority", PRIORITY),
    )
    triggers = {"manual": ManualTrigger(), **values.get("on", {})}
    contract = values["input"] if "input" in values else compile_schema(None)
    return Workflow(
        name=values["name"],
        description=values.get("description", ""),
        labels=values.get("labels", {}),
        model=model,
        triggers=triggers,
        input=contract,
        concurrency=None if limit is None else limit.said,
        retention=values.get("retention"),
    )


_LABELS = MapOf(
    Text(size_max=256), r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$", "a label: letters, digits, dot, _, / and -", 32
)
_QUEUE = Text(NAME, "the name of a queue: a-z, 0-9, then also dot, _ and -, at most 63")
WORKFLOW = Shape(
    "workflow",
    {
        "name": Field(
            Text(NAME, "a name: a-z, 0-9, then also dot, _ and -, at most 63"), "Name of the workflow.", required=True
        ),
        "description": Field(Text(size_max=4096), "What it is for."),
        "labels": Field(_LABELS, "For selection."),
        "vars": Field(_Vars(), "Constants, read as `vars.<name>`."),
        "input": Field(_Input(), "JSON Schema of the run's input."),
        "on": Field(Triggers(), "What starts it, besides people."),
        "timeout": Field(Duration(), "Limit of the whole run."),
        "concurrency": Field(CONCURRENCY, "How many runs of a group may run at the same time."),
        "retention": Field(RETENTION, "How long its ended runs are kept; what is left out is as the daemon is set."),
        "queue": Field(_QUEUE, "The lane of its http and shell steps; `default` by default."),
        "priority": Field(Whole(0, 9), "More is sooner; 5 by default."),
        "defaults": Field(DEFAULTS, "What http and shell steps do that do not say otherwise."),
        "steps": Field(Steps(), "What it does.", required=True),
        "on_failure": Field(
            Phase("on_failure", frozenset({"error"})), "What it does when a step failed; sees `error`."
        ),
        "on_cancel": Field(Phase("on_cancel"), "What it does when the run was cancelled and everything has stopped."),
        "cancel_grace": Field(Duration(1, 3600), "Limit of `on_cancel`; 60s by default."),
        "output": Field(TemplateTree(), "The run's output."),
    },
    _build_workflow,
)
