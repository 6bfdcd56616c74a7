# ruff: noqa: ARG001, D102 - builders share one signature, and not each needs all of it; `Reader` documents its methods
"""What starts a workflow: the tables of `on:`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from taskforged.language.definition import ManualTrigger, Trigger, Verify, WebhookTrigger
from taskforged.language.kinds import TOKEN_PATTERN, InputMap
from taskforged.language.loader import MappingNode, Node
from taskforged.language.paths import join
from taskforged.language.shape import Choice, ConditionText, Context, Field, MapOf, Schema, Shape, Text
from taskforged.language.templates import SECRET_NAME

__all__ = ["TRIGGER", "Triggers"]

TRIGGER_ROOTS = frozenset({"event", "vars"})

_SECRET_NAME = "^" + SECRET_NAME.pattern.removesuffix(r"\Z") + "$"
_VERIFY_KEYS = {
    "github": frozenset({"secret"}),
    "hmac": frozenset({"secret", "header", "algorithm", "encoding", "prefix"}),
    "none": frozenset[str](),
}
_VERIFY_REQUIRED = {"github": ("secret",), "hmac": ("secret", "header"), "none": ()}
_VERIFY_HINT = (
    "'verify' is missing: say how the sender is proved, for example {scheme: github, secret: WEBHOOK_SECRET} or "
    "{scheme: hmac, secret: WEBHOOK_SECRET, header: x-signature}; {scheme: none} accepts anybody"
)


def _build_verify(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Verify:
    scheme = values["scheme"]
    for key in values:
        if key != "scheme" and key not in _VERIFY_KEYS[scheme]:
            context.problem(node.entries[key][0], join(path, key), f"{key!r} has no meaning with scheme {scheme}")
    for key in _VERIFY_REQUIRED[scheme]:
        if key not in values:
            context.problem(node, path, f"{key!r} is missing, scheme {scheme} needs it")
    if "secret" in values:
        context.templates.secrets.add(values["secret"])
    if scheme == "github":
        return Verify(scheme, values.get("secret", ""), header="x-hub-signature-256", prefix="sha256=")
    return Verify(
        scheme,
        values.get("secret", ""),
        header=values.get("header", "").lower(),
        algorithm=values.get("algorithm", "sha256"),
        encoding=values.get("encoding", "hex"),
        prefix=values.get("prefix", ""),
    )


VERIFY = Shape(
    "verify",
    {
        "scheme": Field(Choice(("github", "hmac", "none")), "How the sender is proved.", required=True),
        "secret": Field(Text(_SECRET_NAME, "the name of a secret, such as WEBHOOK_SECRET"), "Name of the secret."),
        "header": Field(Text(TOKEN_PATTERN, "a header name"), "Header with the signature (hmac)."),
        "algorithm": Field(Choice(("sha256", "sha1", "sha512")), "Digest (hmac); sha256 by default."),
        "encoding": Field(Choice(("hex", "base64")), "Encoding of the signature (hmac); hex by default."),
        "prefix": Field(Text(size_max=40), "Text before the signature in the header (hmac)."),
    },
    _build_verify,
)


@dataclass(frozen=True, slots=True)
class _Hook:
    """What `webhook:` says."""

    path: str
    verify: Verify
    delivery_header: str


def _build_webhook(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> _Hook:
    verify: Verify = values["verify"]
    default = "x-github-delivery" if verify.scheme == "github" else ""
    return _Hook(values["path"], verify, values.get("delivery_header", default).lower())


_HOOK_PATH = Text(
    r"^[a-z0-9][a-z0-9._-]{0,62}(/[a-z0-9][a-z0-9._-]{0,62}){0,7}$",
    "a path such as github or ci/builds: a-z, 0-9, dot, _ and -, without a slash at its ends",
    256,
)
WEBHOOK = Shape(
    "webhook",
    {
        "path": Field(_HOOK_PATH, "Below /hooks/<namespace>/.", required=True),
        "verify": Field(VERIFY, "How the sender is proved, or `none`.", required=True, missing=_VERIFY_HINT),
        "delivery_header": Field(Text(TOKEN_PATTERN, "a header name"), "Header with the sender's id of the delivery."),
    },
    _build_webhook,
)


def _build_manual(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> ManualTrigger:
    return ManualTrigger()


MANUAL = Shape("manual", {}, _build_manual, null_is_empty=True)


def _build_trigger(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Trigger | None:
    """Answer the trigger without its id, which `Triggers` knows."""
    if "webhook" in values:
        hook: _Hook = values["webhook"]
        return WebhookTrigger("", hook.path, hook.verify, values.get("if"), values.get("input"), hook.delivery_header)
    for key in ("if", "input"):
        if key in values:
            context.problem(node.entries[key][0], join(path, key), f"{key!r} is possible only with webhook")
    return ManualTrigger()


TRIGGER = Shape(
    "trigger",
    {
        "manual": Field(MANUAL, "People and programs start it."),
        "webhook": Field(WEBHOOK, "A POST to /hooks/<namespace>/<path> starts it."),
        "if": Field(ConditionText(), "The trigger matches when it is true; sees `event`."),
        "input": Field(InputMap(), "The run's input, made from `event`."),
    },
    _build_trigger,
    one_of=("manual", "webhook"),
    later=frozenset({"cron", "event"}),
)


_BY_ID = MapOf(TRIGGER, r"^[a-z][a-z0-9_-]{0,62}$", "a trigger id: a-z, then a-z, 0-9, _ and -, at most 63")


@dataclass(frozen=True, slots=True)
class Triggers:
    """Triggers by id. The id `manual` belongs to the trigger that every workflow has."""

    def read(self, node: Node, path: str, context: Context) -> dict[str, Trigger]:
        roots, context.roots = context.roots, TRIGGER_ROOTS
        found = _BY_ID.read(node, path, context)
        context.roots = roots
        triggers = {key: dataclasses.replace(one, id=key) for key, one in found.items() if one is not None}
        if isinstance(triggers.get("manual"), WebhookTrigger):
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
            if (first.verify, first.delivery_header) != (one.verify, one.delivery_header):
                message = f"trigger {first.id!r} has the same path; verify and delivery_header must be the same, too"
                at = node.entries[key][0] if isinstance(node, MappingNode) else node
                context.problem(at, join(path, key), message)

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return _BY_ID.schema(defs)
