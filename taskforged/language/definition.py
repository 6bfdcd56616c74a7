"""What a definition compiles to: the engine's model plus everything around a run (triggers, input contract)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from taskforged.engine.model import Expression, Json, WorkflowModel

__all__ = ["Definition", "InputContract", "ManualTrigger", "Trigger", "Verify", "WebhookTrigger"]


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
        scheme: `github`, `hmac` or `none`.
        secret: name of the namespace's secret; empty for `none`.
        header: lower-case name of the header with the signature (`hmac`; fixed for `github`).
        algorithm: `sha256`, `sha1` or `sha512` (`hmac`).
        encoding: `hex` or `base64` (`hmac`).
        prefix: text before the signature in the header, for example `sha256=` (`hmac`).
    """

    scheme: str
    secret: str = ""
    header: str = ""
    algorithm: str = "sha256"
    encoding: str = "hex"
    prefix: str = ""


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
        delivery_header: lower-case name of the header with the sender's delivery id; empty when there is none.
    """

    id: str
    path: str
    verify: Verify
    condition: Expression | None = None
    input: Expression | None = None
    delivery_header: str = ""
    kind: str = "webhook"


Trigger: TypeAlias = ManualTrigger | WebhookTrigger


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
