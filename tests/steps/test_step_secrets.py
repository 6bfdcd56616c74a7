"""References become values just before use; every echo of a value is masked."""

import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskforged.errors import InvalidArgumentError, NotFoundError
from taskforged.steps.base import SecretValue
from taskforged.steps.secrets import LENGTH_MIN, MASK, mask, resolve_references

VAULT = {"TOKEN": "s3cr3t-value", "USER": "ada", "KEY": "line one\nline two\n"}
HOSTS = {}


class Vault:
    def __init__(self):
        self.asked = []

    async def __call__(self, name):
        self.asked.append(name)
        try:
            return SecretValue(VAULT[name], HOSTS.get(name, ()))
        except KeyError:
            raise NotFoundError("no such row") from None


async def test_references_are_replaced_anywhere_and_the_argument_stays():
    value = {
        "headers": {"Authorization": {"$concat": ["Bearer ", {"$secret": "TOKEN"}]}},
        "json": [{"a": {"$secret": "TOKEN"}}, 1, None, True, {"b": {"$secret": "USER"}}],
    }
    before = json.dumps(value)
    vault = Vault()
    resolved, used = await resolve_references(value, vault)
    assert resolved == {
        "headers": {"Authorization": "Bearer s3cr3t-value"},
        "json": [{"a": "s3cr3t-value"}, 1, None, True, {"b": "ada"}],
    }
    assert used == {"s3cr3t-value", "ada"}
    assert json.dumps(value) == before
    assert sorted(vault.asked) == ["TOKEN", "USER"]


async def test_a_value_without_references_is_answered_as_it_is():
    value = {"json": {"$other": 1, "x": [1, "$secret"]}}
    assert await resolve_references(value, Vault()) == (value, frozenset())


async def test_a_concat_without_secrets_is_joined_too():
    assert await resolve_references({"text": {"$concat": ["a", "b"]}}, Vault()) == ({"text": "ab"}, frozenset())


async def test_a_missing_secret_is_named():
    with pytest.raises(NotFoundError) as caught:
        await resolve_references([{"$secret": "NOPE"}], Vault())
    assert caught.value.metadata == {"secret": "NOPE"}
    assert "NOPE" in caught.value.message


@pytest.mark.parametrize(
    "value", [{"$secret": 1}, {"$concat": "x"}, {"$concat": ["a", 1]}, {"$concat": [{"a": "b"}]}, {"$concat": []}]
)
async def test_a_malformed_reference_is_refused(value):
    with pytest.raises(InvalidArgumentError):
        await resolve_references([value], Vault())


def base64_at(offset, urlsafe=False, tail=b"~~~"):
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    return lambda secret: encode(b"x" * offset + secret.encode() + tail).decode()


TRANSFORMS = {
    "raw": lambda s: s,
    "json": lambda s: json.dumps(s)[1:-1],
    "json utf-8": lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    "json slashes": lambda s: json.dumps(s)[1:-1].replace("/", "\\/"),
    "repr": lambda s: repr(s)[1:-1],
    "quote": quote,
    "quote all": lambda s: quote(s, safe=""),
    "quote_plus": quote_plus,
    "base64 0": base64_at(0),
    "base64 1": base64_at(1),
    "base64 2": base64_at(2),
    "urlsafe 0": base64_at(0, urlsafe=True),
    "urlsafe 1": base64_at(1, urlsafe=True),
    "urlsafe 2": base64_at(2, urlsafe=True),
    "base64 end": base64_at(0, tail=b""),
    "base64 end 1": base64_at(1, tail=b""),
}
secrets = st.text(st.characters(exclude_categories=["Cs"]), min_size=12, max_size=60).filter(
    lambda s: len(s.strip()) >= 12
)
noise = st.text(st.sampled_from("ab \n{}\"'"), max_size=8)


def leaks(text, secret, name):
    """Whether five characters in a row of the transformed secret are still there (the edges of base64 may stay)."""
    form = TRANSFORMS[name](secret)
    inside = form[4:-8] if "end" not in name and ("base64" in name or "urlsafe" in name) else form[4:]
    return len(inside) > 3 and inside in text


@given(secrets, st.sampled_from(sorted(TRANSFORMS)), noise, noise)
def test_no_form_of_a_secret_survives(secret, name, before, after):
    text = before + TRANSFORMS[name](secret) + after
    masked = mask({"k": [text], text: 1, "n": {"m": text}}, [secret])
    assert not leaks(masked["k"][0], secret, name)
    assert not leaks(masked["n"]["m"], secret, name)
    assert not any(leaks(key, secret, name) for key in masked)


@given(
    st.lists(st.text(st.sampled_from("abcd"), min_size=4, max_size=8), min_size=1, max_size=4),
    st.text(st.sampled_from("abcd"), max_size=60),
)
def test_overlapping_secrets_leave_no_rest(values, text):
    masked = mask(text, values)
    covered = [False] * len(text)
    for value in values:
        for at in range(len(text)):
            if text.startswith(value, at):
                covered[at : at + len(value)] = [True] * len(value)
    assert masked.replace(MASK, "") == "".join(c for c, hidden in zip(text, covered) if not hidden)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        lambda c: st.lists(c) | st.dictionaries(st.text(max_size=3), c),
        max_leaves=10,
    )
)
def test_what_holds_no_secret_is_not_changed(value):
    assert mask(value, ["a-secret-that-is-not-there"]) == value


def test_a_secret_that_overlaps_itself_leaves_no_rest():
    assert mask("x ababab y", ["abab"]) == "x *** y"


def test_each_line_of_a_secret_is_masked():
    secret = "-----BEGIN KEY-----\nMIIabcdef\n  indented9\r\nab\n"
    assert mask("x MIIabcdef y indented9 z ab", [secret]) == "x *** y *** z ab"


def test_short_values_are_left_alone():
    assert mask("abc", ["abc", ""]) == "abc"
    assert LENGTH_MIN == 4


def test_a_number_that_spells_a_secret_is_masked():
    assert mask({"pin": 12345678, "n": 7, "b": True, "f": 3.25}, ["12345678"]) == {
        "pin": "***",
        "n": 7,
        "b": True,
        "f": 3.25,
    }


def test_lower_case_escapes_are_masked():
    assert mask("a%c3%bc%2fb", ["aü/b"]) == "***"


def test_a_secret_inside_an_encoded_header():
    header = base64.b64encode(b"user:correct horse battery").decode()
    assert "aG9yc2U" not in mask(header, ["correct horse battery"])


def test_without_secrets_the_same_object_comes_back():
    value = {"a": ["b"]}
    assert mask(value, []) is value


async def test_a_secret_with_hosts_is_for_whoever_can_see_to_them(monkeypatch):
    monkeypatch.setitem(HOSTS, "TOKEN", ("api.example.com",))
    value = {"a": {"$secret": "TOKEN"}, "b": {"$secret": "USER"}}
    with pytest.raises(InvalidArgumentError, match=r"TOKEN may only be sent to api\.example\.com") as caught:
        await resolve_references(value, Vault())
    assert caught.value.metadata == {"secret": "TOKEN"}
    seen = {}
    resolved, _ = await resolve_references(value, Vault(), admit=seen.__setitem__)
    assert resolved == {"a": VAULT["TOKEN"], "b": VAULT["USER"]}
    assert {name: secret.hosts for name, secret in seen.items()} == {"TOKEN": ("api.example.com",), "USER": ()}
