# ruff: noqa: ARG001, ARG002 - readers and builders share one signature, and not each needs all of it
"""Webhook triggers: the tables of `webhook:` and its `verify:`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from taskforged.language.definition import Rate, Verify
from taskforged.language.kinds import TOKEN_PATTERN
from taskforged.language.loader import MappingNode, Node, ScalarNode, SequenceNode
from taskforged.language.paths import did_you_mean, join
from taskforged.language.shape import Choice, Context, Duration, Field, Schema, Shape, Text
from taskforged.language.templates import SECRET_NAME

__all__ = ["PLACEHOLDER", "PRESETS", "WEBHOOK", "Hook"]

PRESETS: Mapping[str, Verify] = {
    "github": Verify("github", header="x-hub-signature-256", prefix="sha256="),
    "standard-webhooks": Verify(
        "standard-webhooks",
        header="webhook-signature",
        encoding="base64",
        prefix="v1,",
        signed="{id}.{timestamp}.{body}",
        timestamp_header="webhook-timestamp",
        id_header="webhook-id",
    ),
    # Its time has no header of its own: `t=` stands beside the signatures.
    "stripe": Verify("stripe", header="stripe-signature", signed="{timestamp}.{body}"),
    "slack": Verify(
        "slack",
        header="x-slack-signature",
        prefix="v0=",
        signed="v0:{timestamp}:{body}",
        timestamp_header="x-slack-request-timestamp",
    ),
    "gitlab": Verify("gitlab", header="x-gitlab-token"),
    "basic": Verify("basic", header="authorization", prefix="Basic "),
}
"""What the provider fixes of each scheme that leaves the author of a definition no choice."""

PLACEHOLDER = re.compile(r"(\{(?:body|timestamp|id)\})", re.ASCII)
"""Splits `signed:` into its placeholders, at the odd places, and the text around them."""

_DELIVERY_HEADERS = {
    "github": "x-github-delivery",
    "standard-webhooks": "webhook-id",
    "gitlab": "idempotency-key",
}
_SECRETS_MAX = 4


class _Keys(NamedTuple):
    """The keys of `verify:` that go with a scheme; `secret` stands for `secrets`, too."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def names(self) -> list[str]:
        both = ["secrets"] if "secret" in self.required else []
        return [*self.required[:1], *both, *self.required[1:], *self.optional]


_SCHEMES: Mapping[str, _Keys] = {
    "github": _Keys(("secret",)),
    "standard-webhooks": _Keys(("secret",), ("tolerance",)),
    "stripe": _Keys(("secret",), ("tolerance",)),
    "slack": _Keys(("secret",), ("tolerance",)),
    "gitlab": _Keys(("secret",)),
    "token": _Keys(("secret",), ("header", "prefix", "query")),
    "hmac": _Keys(
        ("secret", "header"),
        ("algorithm", "encoding", "prefix", "signed", "timestamp_header", "id_header", "tolerance"),
    ),
    "basic": _Keys(("secret", "username")),
    "none": _Keys(),
}
_VERIFY_HINT = (
    "'verify' is missing: say how the sender is proved, for example {scheme: github, secret: WEBHOOK_SECRET} or "
    "{scheme: hmac, secret: WEBHOOK_SECRET, header: x-signature}; {scheme: none} accepts anybody"
)


# --- readers ---------------------------------------------------------------------------------------------------------

_SECRET = Text(
    "^" + SECRET_NAME.pattern.removesuffix(r"\Z") + "$",
    "the name of a secret, such as WEBHOOK_SECRET",
)


@dataclass(frozen=True, slots=True)
class _SecretNames:
    """Several secrets, any of which may prove the sender: a new one, and the old one until nobody uses it."""

    def read(self, node: Node, path: str, context: Context) -> list[str | None]:
        if not isinstance(node, SequenceNode) or not node.items:
            context.problem(node, path, "must be a list of names of secrets, for example [NEW_SECRET, OLD_SECRET]")
            return []
        if len(node.items) > _SECRETS_MAX:
            context.problem(node, path, f"has {len(node.items)} entries; the limit is {_SECRETS_MAX}")
        names = [_SECRET.read(item, join(path, index), context) for index, item in enumerate(node.items)]
        for index, name in enumerate(names):
            if name is not None and name in names[:index]:
                context.problem(node.items[index], join(path, index), f"{name!r} is there twice")
        return names

    def schema(self, defs: dict[str, Schema]) -> Schema:
        limits = {"minItems": 1, "maxItems": _SECRETS_MAX, "uniqueItems": True}
        return {"type": "array", "items": _SECRET.schema(defs)} | limits


_SIGNED = Text(size_max=200)
_BRACES = re.compile(r"\{[^{}]*\}|[{}]")
_SEPARATOR = re.compile(r"[^A-Za-z0-9]")


@dataclass(frozen=True, slots=True)
class _Signed:
    """What is signed: text with placeholders."""

    def read(self, node: Node, path: str, context: Context) -> str | None:
        text = _SIGNED.read(node, path, context)
        for message in () if text is None else _faults_of_signed(text):
            context.problem(node, path, message)
        return text

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return _SIGNED.schema(defs) | {"pattern": r"\{body\}"}


def _faults_of_signed(text: str) -> list[str]:
    parts = PLACEHOLDER.split(text)
    placeholders, between = parts[1::2], parts[2:-1:2]
    unknown = [found for found in _BRACES.findall(text) if not PLACEHOLDER.fullmatch(found)]
    faults = []
    if unknown:
        hint = " (expressions are not possible here)" if "${{" in text else ""
        hint = hint or did_you_mean(unknown[0], ("{body}", "{timestamp}", "{id}"))
        faults.append(f"{unknown[0]!r} is no placeholder{hint}")
    elif "{body}" not in placeholders:
        faults.append("'{body}' is missing: a signature that leaves out the body proves nothing about it")
    if len(set(placeholders)) < len(placeholders):
        faults.append("each placeholder can be there only once")
    # Without such a border bytes could move from one part into the next, and the signature would still be right.
    if not all(_SEPARATOR.search(one) for one in between):
        faults.append("placeholders need a separator between them, such as . or :, for example '{timestamp}.{body}'")
    return faults


_RATE = re.compile(r"([1-9][0-9]{0,5})/([smh])\Z", re.ASCII)
_PERIODS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class _RateText:
    """A rate such as `10/s`."""

    def read(self, node: Node, path: str, context: Context) -> Rate | None:
        example = "write how many in a second, minute or hour, for example 10/s, 600/m or 1000/h"
        found = _RATE.match(node.text) if isinstance(node, ScalarNode) else None
        if found is not None:
            return Rate(int(found[1]), _PERIODS_S[found[2]])
        what = f"{node.text[:40]!r} is" if isinstance(node, ScalarNode) else "this is"
        context.problem(node, path, f"{what} no rate; {example}")
        return None

    def schema(self, defs: dict[str, Schema]) -> Schema:
        return {"type": "string", "pattern": "^[1-9][0-9]{0,5}/[smh]$"}


# --- verify ----------------------------------------------------------------------------------------------------------


class _VerifyShape(Shape):
    """A `Shape` whose keys depend on its scheme; that is checked beside all other faults, not only after them."""

    __slots__ = ()

    def read(self, node: Node, path: str, context: Context) -> Any:
        if isinstance(node, MappingNode):
            _check_scheme(node, path, context)
        return super().read(node, path, context)

    def _schema(self, defs: dict[str, Schema]) -> Schema:
        schema = super()._schema(defs)
        schema["allOf"] = [*schema.get("allOf", ()), *(_schema_of(scheme, keys) for scheme, keys in _SCHEMES.items())]
        return schema


def _schema_of(scheme: str, keys: _Keys) -> Schema:
    then: Schema = {"propertyNames": {"enum": ["scheme", *keys.names()]}}
    required = [key for key in keys.required if key != "secret"]
    if required:
        then["required"] = required
    if "secret" in keys.required:
        then["anyOf"] = [{"required": ["secret"]}, {"required": ["secrets"]}]
    return {"if": {"properties": {"scheme": {"const": scheme}}, "required": ["scheme"]}, "then": then}


def _scalar(node: MappingNode, key: str) -> str | None:
    """Answer the text of a key; None when it is not there, or something else."""
    value = node.entries[key][1] if key in node.entries else None
    return value.value if isinstance(value, ScalarNode) and isinstance(value.value, str) else None


def _check_scheme(node: MappingNode, path: str, context: Context) -> None:
    """Report what does not go with the scheme. An unknown scheme or key is reported by the table."""
    scheme = _scalar(node, "scheme")
    keys = _SCHEMES.get(scheme or "")
    if keys is None:
        return
    hint = f"; it takes {', '.join(keys.names())}" if keys.required else "; it takes no other key"
    for key, (key_node, _) in node.entries.items():
        if key in VERIFY.fields and key != "scheme" and key not in keys.names():
            context.problem(key_node, join(path, key), f"{key!r} has no meaning with scheme {scheme}{hint}")
    for key in keys.required:
        if key not in node.entries and not (key == "secret" and "secrets" in node.entries):
            context.problem(node, path, f"{key!r} is missing, scheme {scheme} needs it")
    if scheme == "hmac":
        _check_signed(node, path, context)
    elif scheme == "token":
        _check_token(node, path, context)


def _check_token(node: MappingNode, path: str, context: Context) -> None:
    for key in ("header", "prefix"):
        if "query" in node.entries and key in node.entries:
            message = f"{key!r} and 'query' exclude each other: the token is in a header or in the URL"
            context.problem(node.entries[key][0], join(path, key), message)


def _check_signed(node: MappingNode, path: str, context: Context) -> None:
    """Whatever is signed must be found somewhere, and whatever is not signed proves nothing."""
    signed = _scalar(node, "signed") or "{body}"
    for word, header in (("{timestamp}", "timestamp_header"), ("{id}", "id_header")):
        if word in signed and header not in node.entries:
            value = node.entries["signed"][1]
            context.problem(value, join(path, "signed"), f"{word!r} needs {header!r}, the header in which it is sent")
        elif word not in signed and header in node.entries:
            message = f"{header!r} proves nothing when it is not signed; add {word!r} to 'signed'"
            hint = " or, to recognise repetitions, use 'delivery_header'" if word == "{id}" else ""
            context.problem(node.entries[header][0], join(path, header), message + hint)
    if "tolerance" in node.entries and "{timestamp}" not in signed:
        message = "'tolerance' has no meaning when no time is signed; add '{timestamp}' to 'signed'"
        context.problem(node.entries["tolerance"][0], join(path, "tolerance"), message)


def _build_verify(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Verify:
    scheme = values["scheme"]
    secrets = tuple(values["secrets"]) if "secrets" in values else (values["secret"],) if "secret" in values else ()
    context.templates.secrets.update(secrets)
    changes: dict[str, Any] = {
        key: values[key] for key in ("query", "algorithm", "encoding", "prefix", "signed", "username") if key in values
    }
    # Names of headers arrive in lower case.
    changes |= {key: values[key].lower() for key in ("header", "timestamp_header", "id_header") if key in values}
    if "tolerance" in values:
        changes["tolerance_s"] = values["tolerance"]
    if scheme == "token" and not changes.keys() & {"header", "query"}:
        changes = {"header": "authorization", "prefix": "Bearer "} | changes
    return dataclasses.replace(PRESETS.get(scheme, Verify(scheme)), secrets=secrets, **changes)


_HEADER = Text(TOKEN_PATTERN, "a header name")
_QUERY = Text(r"^[A-Za-z0-9._~-]{1,100}$", "a parameter of a URL, such as token")
_USERNAME = Text(r"^[^:\x00-\x1f\x7f]{1,200}$", "a user name: at most 200 characters, no colon, no control characters")
VERIFY = _VerifyShape(
    "verify",
    {
        "scheme": Field(Choice(tuple(_SCHEMES)), "How the sender is proved.", required=True),
        "secret": Field(_SECRET, "Name of the secret."),
        "secrets": Field(_SecretNames(), "Names of several secrets, any of which may be used: to change one."),
        "header": Field(_HEADER, "Header with the signature (hmac) or the token (token: authorization by default)."),
        "query": Field(_QUERY, "Parameter of the URL with the token (token); other people's logs may show it."),
        "algorithm": Field(Choice(("sha256", "sha1", "sha512")), "Digest (hmac); sha256 by default."),
        "encoding": Field(Choice(("hex", "base64")), "Encoding of the signature (hmac); hex by default."),
        "prefix": Field(Text(size_max=40), "Text before the signature (hmac) or the token (token) in the header."),
        "signed": Field(
            _Signed(), "What is signed (hmac): {body}, perhaps with {timestamp} and {id}; {body} by default."
        ),
        "timestamp_header": Field(_HEADER, "Header with the {timestamp}, in seconds since 1970 (hmac)."),
        "id_header": Field(_HEADER, "Header with the {id} (hmac)."),
        "tolerance": Field(Duration(1, 3600), "How old or early a signed time may be; 5m by default."),
        "username": Field(_USERNAME, "User name (basic); the secret is the password."),
    },
    _build_verify,
    at_most_one_of=("secret", "secrets"),
)


# --- webhook ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hook:
    """What `webhook:` says; `WebhookTrigger` documents it."""

    path: str
    verify: Verify
    delivery_header: str
    wait_s: float | None = None
    rate: Rate | None = None


def _build_webhook(values: dict[str, Any], node: MappingNode, path: str, context: Context) -> Hook:
    verify: Verify = values["verify"]
    default = _DELIVERY_HEADERS.get(verify.scheme, verify.id_header)
    header = values.get("delivery_header", default).lower()
    return Hook(values["path"], verify, header, values.get("wait"), values.get("rate_limit"))


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
        "delivery_header": Field(_HEADER, "Header with the sender's id of the delivery."),
        "wait": Field(Duration(0.1, 300), "The sender is answered with the run's output if it ends within that time."),
        "rate_limit": Field(_RateText(), "How many deliveries the path takes, for example 10/s, 600/m or 1000/h."),
    },
    _build_webhook,
)
