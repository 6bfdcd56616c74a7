"""What is known of the senders: test messages, delivery ids, and what a repetition is recognised by."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskforged.control.providers import DeliveryId, credentials, delivery_id, delivery_key, handshake
from taskforged.language.definition import Verify
from taskforged.language.webhooks import PRESETS

FIXTURES = Path(__file__).parents[1] / "fixtures" / "github"
GITHUB, STANDARD, STRIPE = PRESETS["github"], PRESETS["standard-webhooks"], PRESETS["stripe"]
SLACK, GITLAB, BASIC = PRESETS["slack"], PRESETS["gitlab"], PRESETS["basic"]
HMAC = Verify("hmac", header="x-sig")
HMAC_ID = Verify("hmac", header="x-sig", signed="{id}.{body}", id_header="x-id")
TOKEN, NONE = Verify("token", query="token"), Verify("none")
UNSIGNED = [GITLAB, BASIC, TOKEN, NONE]


def sha256(raw):
    return hashlib.sha256(raw).digest()


# --- test messages ---------------------------------------------------------------------------------------------------


def test_the_recorded_ping_of_github_is_a_test_message():
    assert handshake("github", {"x-github-event": "ping"}, json.loads((FIXTURES / "ping.json").read_text())) == {}


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_other_recorded_events_of_github_are_none(path):
    event = path.name.partition(".")[0]
    answer = handshake("github", {"x-github-event": event}, json.loads(path.read_text()))
    assert (answer is None) is (event != "ping")


def test_slacks_challenge_is_sent_back():
    challenge = "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P"
    value = {"token": "Jhj5dZrVaK7ZwHHjRyZWjbDl", "challenge": challenge, "type": "url_verification"}
    assert handshake("slack", {}, value) == {"challenge": challenge}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "url_verification",
        {},
        {"type": "url_verification"},
        {"type": "url_verification", "challenge": ""},
        {"type": "url_verification", "challenge": "a" * 201},
        {"type": "url_verification", "challenge": 7},
        {"type": "url_verification", "challenge": {"a": "b"}},
        {"type": ["url_verification"], "challenge": "a"},
        {"type": "event_callback", "challenge": "a"},
    ],
)
def test_what_is_no_challenge_is_not_answered(value):
    assert handshake("slack", {}, value) is None


@pytest.mark.parametrize("scheme", ["standard-webhooks", "stripe", "gitlab", "token", "hmac", "basic", "none", ""])
def test_others_have_no_test_messages(scheme):
    """Above all not those whose sender is not proved: they could have anything sent back."""
    assert handshake(scheme, {"x-github-event": "ping"}, {"type": "url_verification", "challenge": "a"}) is None
    assert handshake("slack", {"x-github-event": "ping"}, {}) is None
    assert handshake("github", {}, {"type": "url_verification", "challenge": "a"}) is None


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("demand", "headers", "name", "value", "wanted"),
    [
        (GITHUB, {"x-github-delivery": "72d3162e"}, "x-github-delivery", {"id": "b"}, ("72d3162e", False)),
        (GITHUB, {}, "x-github-delivery", {}, ("", False)),
        (GITHUB, {"": "odd"}, "", {}, ("", False)),
        (STANDARD, {"webhook-id": "msg_1", "x": "2"}, "x", {"id": "b"}, ("msg_1", True)),
        (STANDARD, {}, "webhook-id", {}, ("", False)),
        (STRIPE, {}, "", {"id": "evt_1"}, ("evt_1", True)),
        (STRIPE, {"x": "2"}, "x", {"id": "evt_1"}, ("evt_1", True)),
        (STRIPE, {"x": "2"}, "x", {"id": ""}, ("2", False)),
        (STRIPE, {}, "", {"id": 7}, ("", False)),
        (STRIPE, {}, "", {"id": "a" * 257}, ("", False)),
        (STRIPE, {}, "", "evt_1", ("", False)),
        (SLACK, {}, "", {"event_id": "Ev08MFMKH6"}, ("Ev08MFMKH6", True)),
        (SLACK, {}, "", {"id": "x"}, ("", False)),
        (SLACK, {}, "", {"token": "form"}, ("", False)),
        (GITLAB, {"idempotency-key": "k"}, "idempotency-key", {"id": "b"}, ("k", False)),
        (HMAC, {"x-id": "7"}, "x-id", {"id": "b"}, ("7", False)),
        (HMAC_ID, {"x-id": "7", "x-other": "8"}, "x-other", {}, ("7", True)),
        (NONE, {"x-id": "7"}, "x-id", {"id": "b"}, ("7", False)),
        (TOKEN, {}, "", {"id": "b", "event_id": "c"}, ("", False)),
    ],
)
def test_the_id_of_a_delivery(demand, headers, name, value, wanted):
    assert delivery_id(demand, headers, name, value) == wanted


def test_an_id_header_that_is_not_signed_covers_nothing():
    lax = Verify("hmac", header="x-sig", id_header="x-id")
    assert delivery_id(lax, {"x-id": "7"}, "x-id", {}) == ("7", False)


# --- repetitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("demand", [GITHUB, HMAC])
def test_keys_of_earlier_versions_stay_as_they_were(demand):
    """Otherwise a delivery that was kept before an update would be taken again after it."""
    sent = DeliveryId("72d3162e-cc78-11e3", False)
    assert delivery_key(demand, sent, b"{}") == sha256(b"72d3162e-cc78-11e3\0" + sha256(b"{}"))
    assert delivery_key(demand, DeliveryId("", False), b"{}") == sha256(b"{}")
    assert delivery_key(demand, DeliveryId("", False), b"") is None


@pytest.mark.parametrize("demand", [STANDARD, STRIPE, SLACK, HMAC_ID])
def test_a_covered_id_is_enough(demand):
    """Slack and Stripe send a delivery again with another time and perhaps other spaces; it is the same."""
    sent = DeliveryId("one", True)
    assert (
        delivery_key(demand, sent, b"a")
        == delivery_key(demand, sent, b"b")
        == sha256(demand.scheme.encode() + b"\0one")
    )


def test_a_body_is_recognised_when_it_is_signed():
    assert delivery_key(SLACK, DeliveryId("", False), b"text=a") == sha256(b"text=a")


@pytest.mark.parametrize("demand", UNSIGNED)
def test_a_body_that_is_not_signed_is_no_key(demand):
    assert delivery_key(demand, DeliveryId("", False), b'{"id": 1}') is None
    assert delivery_key(demand, DeliveryId("", False), b"") is None


@pytest.mark.parametrize("demand", [*UNSIGNED, GITHUB, HMAC])
def test_an_uncovered_id_is_a_key_only_together_with_the_body(demand):
    keys = {delivery_key(demand, DeliveryId(text, False), body) for text in "ab" for body in (b"", b"1", b"2")}
    assert len(keys) == 6
    assert None not in keys


@given(st.lists(st.tuples(st.text(), st.booleans(), st.binary()), min_size=2, max_size=4, unique=True))
def test_different_deliveries_have_different_keys(deliveries):
    sent = [(text, is_covered, b"" if is_covered else body) for text, is_covered, body in deliveries if text]
    keys = {delivery_key(HMAC_ID, DeliveryId(text, is_covered), body) for text, is_covered, body in sent}
    assert len(keys) == len(set(sent))


# --- credentials -----------------------------------------------------------------------------------------------------


def test_what_holds_the_secret_itself_is_known():
    assert credentials(GITLAB) == ("x-gitlab-token", "")
    assert credentials(BASIC) == ("authorization", "")
    assert credentials(TOKEN) == ("", "token")
    assert credentials(Verify("token", header="x-token")) == ("x-token", "")
    assert {credentials(one) for one in (GITHUB, STANDARD, STRIPE, SLACK, HMAC, NONE)} == {("", "")}
