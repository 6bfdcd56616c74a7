"""Secrets at the last moment: references become values just before use, and echoes of the values are masked.

A definition never holds a secret, and neither does a record: `{"$secret": NAME}` stands for one, inside a text
`{"$concat": [text or reference, …]}`. What an executor sends is resolved here; whatever comes back goes through `mask`
before anybody stores or logs it.

Masking knows the forms in which programs echo what they were sent (see `_forms`). Any other transformation, for example
a hash, encryption, UTF-16 or the text spelled backwards, is not caught; GitHub Actions documents the same.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias, TypeGuard
from urllib.parse import quote, quote_plus

from taskforged.engine.model import Json
from taskforged.errors import InvalidArgumentError, NotFoundError
from taskforged.jsonvalue import to_text
from taskforged.steps.base import Outcome, SecretLookup, SecretValue, Succeeded

__all__ = ["LENGTH_MIN", "MASK", "Admit", "blanked", "margin_of", "mask", "mask_outcome", "resolve_references"]

MASK = "***"
LENGTH_MIN = 4
"""Shorter values are not masked: they occur in every text by chance, and masking would then tell where."""

_SECRET, _CONCAT = "$secret", "$concat"
_URLSAFE = str.maketrans("+/", "-_")


Admit: TypeAlias = Callable[[str, SecretValue], None]
"""Takes the name and the secret before it is used; raises `errors.InvalidArgumentError` to refuse it."""


def _refuse_bound(name: str, secret: SecretValue) -> None:
    if secret.hosts:
        raise InvalidArgumentError(
            f"the secret {name} may only be sent to {', '.join(secret.hosts)}, which this kind of step cannot see to;"
            " use it in an http step, or another secret here",
            metadata={"secret": name},
        )


async def resolve_references(
    value: Json, lookup: SecretLookup, *, admit: Admit = _refuse_bound
) -> tuple[Json, frozenset[str]]:
    """Answer `value` with every reference replaced, and the values of the secrets that it took; `value` is not changed.

    Each secret is looked up once. Whoever can keep a secret to its hosts says so with `admit`; without, a secret that
    is limited to hosts is refused.

    Raises:
        NotFoundError: a secret does not exist; `metadata["secret"]` is its name.
        InvalidArgumentError: a reference is malformed, or a secret may not be used here.
    """
    text = to_text(value)
    if f'"{_SECRET}"' not in text and f'"{_CONCAT}"' not in text:
        return value, frozenset()  # most have none: one search through the text is cheaper than the walk
    found = {name: await _look_up(name, lookup) for name in sorted(set(_names(value)))}
    for name, secret in found.items():
        admit(name, secret)
    secrets = {name: secret.value for name, secret in found.items()}
    return _fill(value, secrets), frozenset(secrets.values())


async def _look_up(name: str, lookup: SecretLookup) -> SecretValue:
    try:
        return await lookup(name)
    except NotFoundError:
        raise NotFoundError(f"the secret {name} does not exist", metadata={"secret": name}) from None


def _is_reference(value: Json, kind: str) -> TypeGuard[Mapping[str, Json]]:
    return isinstance(value, dict) and len(value) == 1 and kind in value


def _names(value: Json) -> Iterator[str]:
    if _is_reference(value, _SECRET):
        if not isinstance(value[_SECRET], str):
            raise InvalidArgumentError("a reference to a secret must hold its name")
        yield value[_SECRET]
    elif isinstance(value, dict):
        for child in value.values():
            yield from _names(child)
    elif isinstance(value, list):
        for child in value:
            yield from _names(child)


def _fill(value: Json, secrets: Mapping[str, str]) -> Json:
    if _is_reference(value, _SECRET):
        return secrets[value[_SECRET]]
    if _is_reference(value, _CONCAT):
        return _join(value[_CONCAT], secrets)
    if isinstance(value, dict):
        return {key: _fill(child, secrets) for key, child in value.items()}
    if isinstance(value, list):
        return [_fill(child, secrets) for child in value]
    return value


def blanked(value: Json) -> Json:
    """Answer `value` with `***` for every reference."""
    return _fill(value, defaultdict(lambda: MASK))


def _join(parts: Json, secrets: Mapping[str, str]) -> str:
    texts = [_fill(part, secrets) for part in parts] if isinstance(parts, list) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidArgumentError("a text with secrets must be a list of texts and references to secrets")
    return "".join(map(str, texts))


def mask(value: Json, used_values: Iterable[str]) -> Json:
    """Answer a text or JSON value with every echo of a secret replaced by `***`, in keys as well.

    A number that spells a secret becomes a masked text, too. Masking base64 leaves a text that no longer decodes.
    """
    forms = {form: escaped for secret in used_values for form, escaped in _known_forms(secret)}
    if not forms or not _suspicious(value, forms.values()):
        return value
    return _mask(value, sorted(forms), numeric=any(form.strip("0123456789.eE+-") == "" for form in forms))


def mask_outcome(outcome: Outcome, used_values: set[str]) -> Outcome:
    """Mask what an executor answers."""
    if not used_values:
        return outcome
    if isinstance(outcome, Succeeded):
        return Succeeded(mask(outcome.output, used_values))
    return replace(outcome, message=mask(outcome.message, used_values), details=mask(outcome.details, used_values))


def _suspicious(value: Json, escaped_forms: Iterable[str]) -> bool:
    # Nearly no output holds an echo. One search through its JSON is a hundred times faster than a search through each
    # of its strings; it may find too much (across the border of two strings), never too little.
    try:
        text = to_text(value)
    except TypeError:
        return True
    return any(form in text for form in escaped_forms)


def _mask(value: Json, forms: list[str], *, numeric: bool) -> Json:
    if isinstance(value, str):
        return _mask_text(value, forms)
    if isinstance(value, dict):
        return {_mask_text(key, forms): _mask(child, forms, numeric=numeric) for key, child in value.items()}
    if isinstance(value, list):
        return [_mask(child, forms, numeric=numeric) for child in value]
    if numeric and isinstance(value, (int, float)) and not isinstance(value, bool):
        text = to_text(value)
        masked = _mask_text(text, forms)
        return value if masked == text else masked
    return value


def _mask_text(text: str, forms: list[str]) -> str:
    # Spans first, replacement after: with one replacement after the other, a form that overlaps another one which is
    # replaced before it would no longer be found, and its rest would stay readable.
    spans = sorted(span for form in forms for span in _occurrences(text, form))
    if not spans:
        return text
    kept, position = [], 0
    for start, end in _merged(spans):
        kept += [text[position:start], MASK]
        position = end
    return "".join([*kept, text[position:]])


def _occurrences(text: str, form: str) -> Iterator[tuple[int, int]]:
    at = text.find(form)
    while at >= 0:
        yield at, at + len(form)
        at = text.find(form, at + 1)


def _merged(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start, end = spans[0]
    for next_start, next_end in spans[1:]:
        if next_start <= end:
            end = max(end, next_end)
        else:
            yield start, end
            start, end = next_start, next_end
    yield start, end


@lru_cache(maxsize=256)
def _known_forms(secret: str) -> tuple[tuple[str, str], ...]:
    # Cached, since computing them costs as much as a request. The values stay in memory for it, which they do anyway:
    # Python can neither wipe a text nor keep it from being copied.
    return tuple((form, _as_in_json(form)) for form in sorted(set(_forms(secret))))


def _as_in_json(form: str) -> str:
    try:
        return to_text(form)[1:-1]
    except TypeError:
        return ""  # half a character, which no JSON holds: fits everywhere, so that the walk decides


def _forms(secret: str) -> Iterator[str]:
    """All texts that stand for a secret and are long enough to be looked for."""
    for part in {secret, secret.strip(), *map(str.strip, secret.splitlines())}:
        for form in (*_escaped(part), *_percent_encoded(part), *_base64(part.encode("utf-8", "replace"))):
            if len(part) >= LENGTH_MIN and len(form) >= LENGTH_MIN:
                yield form


def margin_of(used_values: Iterable[str]) -> int:
    """Answer how much to cut off behind masking where a text was cut before: no form of a secret is longer."""
    # 12: a character beyond 16 bits, percent-encoded or as two escapes.
    longest = max(map(len, used_values), default=0)
    return 12 * longest + 16 if longest else 0


def _escaped(text: str) -> Iterator[str]:
    yield text
    yield text.lower()  # as names of hosts are told
    for ascii_only in (True, False):
        escaped = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield escaped
        yield escaped.replace("/", "\\/")  # PHP's json_encode
    yield repr(text)[1:-1]


def _percent_encoded(text: str) -> Iterator[str]:
    for form in (
        quote(text, errors="replace"),
        quote(text, safe="", errors="replace"),
        quote_plus(text, errors="replace"),
        quote(text, safe="!*'()", errors="replace"),  # encodeURIComponent of JavaScript
        quote(text, safe="!$&'()*+,;=:@", errors="replace"),  # what a path may hold, RFC 3986
        quote(text, safe="!$&'()*+,;=:@/", errors="replace"),
    ):
        yield form
        yield _lower_escapes(form)


def _lower_escapes(form: str) -> str:
    first, *rest = form.split("%")
    return "%".join([first, *(part[:2].lower() + part[2:] for part in rest)])


def _base64(raw: bytes) -> Iterator[str]:
    """The secret inside something encoded: at each alignment the characters that it alone determines.

    With `offset` bytes of something else before it, the first characters mix both, and so does the last one unless the
    secret ends on a boundary. The second form is for a secret at the very end, where nothing follows.
    """
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw).decode().rstrip("=")
        last = encoded[(0, 2, 3)[offset] :]
        inner = last if (offset + len(raw)) % 3 == 0 else last[:-1]
        for form in (inner, last):
            yield form
            yield form.translate(_URLSAFE)
