"""Text in, `Definition` out, or every fault at once."""

from __future__ import annotations

import functools
import hashlib
from types import MappingProxyType

from taskforged.errors import InvalidArgumentError, Violation
from taskforged.jsonvalue import canonical
from taskforged.language.definition import Definition
from taskforged.language.expressions import PROFILE, Compiler
from taskforged.language.loader import Node, load, to_json
from taskforged.language.order import fan_outs_of
from taskforged.language.shape import Context
from taskforged.language.spec import RUN_ROOTS, WORKFLOW, Workflow
from taskforged.language.steps import declared_step_ids
from taskforged.language.templates import Templates

__all__ = ["compile_definition", "content_hash"]

STEPS_TOTAL_MAX = 2_000
"""Most steps of a definition, those inside others included."""
VIOLATIONS_MAX = 100
"""Most faults in one answer; who has more mends these first."""


@functools.lru_cache(maxsize=256)
def compile_definition(source: str) -> Definition:
    """Compile a definition. Equal text answers the same object, so a stored version costs its compilation once.

    Raises:
        InvalidArgumentError: reason `INVALID_DEFINITION`; one violation per fault, in the order of the document.
    """
    problems: list[Violation] = []
    root = load(source, problems)
    if root is None:
        raise _invalid(problems)
    step_ids = declared_step_ids(root)
    if len(step_ids) > STEPS_TOTAL_MAX:
        message = f"has {len(step_ids):,} steps in all; the limit is {STEPS_TOTAL_MAX:,}"
        raise _invalid([*problems, Violation("steps", message, root.start.line, root.start.column)])
    compiler = Compiler(step_ids, {}, None, problems)
    templates = Templates(compiler, source, set())
    context = Context(templates, problems, RUN_ROOTS, fan_outs=fan_outs_of(root))
    workflow: Workflow | None = WORKFLOW.read(root, "", context)
    if problems or workflow is None:
        raise _invalid(problems)
    return Definition(
        name=workflow.name,
        description=workflow.description,
        labels=MappingProxyType(workflow.labels),
        model=workflow.model,
        triggers=MappingProxyType(workflow.triggers),
        input=workflow.input,
        secrets=frozenset(templates.secrets),
        content_hash=content_hash(root),
        profile=PROFILE,
        concurrency=workflow.concurrency,
        retention=workflow.retention,
    )


def content_hash(root: Node) -> str:
    """Answer the SHA-256 of what a document says: comments, formatting and the order of keys do not count."""
    return hashlib.sha256(canonical(to_json(root))).hexdigest()


def _invalid(problems: list[Violation]) -> InvalidArgumentError:
    found = sorted(set(problems), key=lambda item: (item.line, item.column, item.path, item.message))
    first = found[0]
    where = f"{first.path}: " if first.path else ""
    count = "1 problem" if len(found) == 1 else f"{len(found)} problems, the first"
    return InvalidArgumentError(
        f"the definition has {count}: {where}{first.message} (line {first.line}, column {first.column})",
        reason="INVALID_DEFINITION",
        metadata={"problems": str(len(found))},
        violations=found[:VIOLATIONS_MAX],
    )
