"""`webhook:` and its `verify:`: what each scheme takes, what it means, and what is said of everything else."""

import itertools

import jsonschema_rs
import pytest

from taskforged.language import compile_definition
from taskforged.language.definition import Rate, Verify
from taskforged.language.webhooks import PRESETS, WEBHOOK

STEP = "steps: [{id: a, transform: 1}]\n"


def source(verify, more=""):
    return f"name: x\non:\n  t:\n    webhook:\n      path: p\n      verify: {verify}\n{more}{STEP}"


def trigger(verify, **keys):
    more = "".join(f"      {key}: {value}\n" for key, value in keys.items())
    return compile_definition(source(verify, more)).triggers["t"]


@pytest.mark.parametrize(
    ("text", "wanted", "delivery_header"),
    [
        ("{scheme: github, secret: S}", Verify("github", ("S",), header="x-hub-signature-256", prefix="sha256="), "x-github-delivery"),
        ("{scheme: gitlab, secret: S}", Verify("gitlab", ("S",), header="x-gitlab-token"), "idempotency-key"),
        ("{scheme: stripe, secret: S}", Verify("stripe", ("S",), header="stripe-signature", signed="{timestamp}.{body}"), ""),
        ("{scheme: token, secret: S}", Verify("token", ("S",), header="authorization", prefix="Bearer "), ""),
        ("{scheme: token, secret: S, prefix: 'Token '}", Verify("token", ("S",), header="authorization", prefix="Token "), ""),
        ("{scheme: token, secret: S, header: X-Token}", Verify("token", ("S",), header="x-token"), ""),
        ("{scheme: token, secret: S, header: X-Token, prefix: v1=}", Verify("token", ("S",), header="x-token", prefix="v1="), ""),
        ("{scheme: token, secret: S, query: Key}", Verify("token", ("S",), query="Key"), ""),
        ("{scheme: basic, secret: S, username: 'ci büro'}", Verify("basic", ("S",), header="authorization", prefix="Basic ", username="ci büro"), ""),
        ("{scheme: none}", Verify("none"), ""),
        ("{scheme: hmac, secret: S, header: X-Sig}", Verify("hmac", ("S",), header="x-sig"), ""),
        (
            "{scheme: hmac, secret: S, header: X-Sig, algorithm: sha512, encoding: base64, prefix: 'v1=', signed: 'v1:{timestamp}:{id}.{body}', timestamp_header: X-Time, id_header: X-Id, tolerance: 1h}",
            Verify("hmac", ("S",), "x-sig", "", "sha512", "base64", "v1=", "v1:{timestamp}:{id}.{body}", "x-time", "x-id", 3600.0),
            "x-id",
        ),
    ],
)  # fmt: skip
def test_what_a_scheme_means(text, wanted, delivery_header):
    found = trigger(text)
    assert found.verify == wanted
    assert found.delivery_header == delivery_header


def test_what_providers_fix():
    slack = trigger("{scheme: slack, secret: S, tolerance: 1m}").verify
    assert (slack.header, slack.prefix, slack.signed) == ("x-slack-signature", "v0=", "v0:{timestamp}:{body}")
    assert (slack.timestamp_header, slack.tolerance_s) == ("x-slack-request-timestamp", 60.0)
    found = trigger("{scheme: standard-webhooks, secret: S}")
    standard = found.verify
    assert (standard.header, standard.encoding, standard.prefix) == ("webhook-signature", "base64", "v1,")
    assert (standard.id_header, standard.timestamp_header) == ("webhook-id", "webhook-timestamp")
    assert (standard.signed, standard.tolerance_s) == ("{id}.{timestamp}.{body}", 300.0)
    assert found.delivery_header == "webhook-id"
    assert all(name == preset.scheme and not preset.secrets for name, preset in PRESETS.items())


def test_several_secrets_while_one_is_changed():
    text = source("{scheme: github, secrets: [NEW, OLD]}")
    definition = compile_definition(text)
    assert definition.triggers["t"].verify.secrets == ("NEW", "OLD")
    assert definition.secrets == {"NEW", "OLD"}
    assert trigger("{scheme: stripe, secrets: [A, B, C, D]}").verify.secrets == ("A", "B", "C", "D")


def test_the_other_keys_of_a_webhook():
    plain = trigger("{scheme: none}")
    assert (plain.wait_s, plain.rate, plain.delivery_header) == (None, None, "")
    full = trigger("{scheme: slack, secret: S}", wait="100ms", rate_limit="10/s", delivery_header="X-Retry-Id")
    assert (full.wait_s, full.rate, full.delivery_header) == (0.1, Rate(10, 1.0), "x-retry-id")
    assert trigger("{scheme: none}", wait="5m").wait_s == 300.0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1/s", Rate(1, 1.0)),
        ("600/m", Rate(600, 60.0)),
        ("1000/h", Rate(1000, 3600.0)),
        ("999999/h", Rate(999_999, 3600.0)),
    ],
)
def test_rates(text, wanted):
    assert trigger("{scheme: none}", rate_limit=text).rate == wanted


@pytest.mark.parametrize(
    "text",
    [
        "0/s",
        "10",
        "10/d",
        "10/ s",
        "'10 / s'",
        "-1/s",
        "1000000/s",
        "1.5/s",
        "/s",
        "[10/s]",
        "{a: 1}",
        "١/s",
        "'10/s '",
    ],
)
def test_what_is_no_rate(faults, text):
    [(line, column, path, message)] = faults(source("{scheme: none}", f"      rate_limit: {text}\n"))
    assert (line, column, path) == (7, 19, "on.t.webhook.rate_limit")
    assert "for example 10/s, 600/m or 1000/h" in message


V = "on.t.webhook.verify"


@pytest.mark.parametrize(
    ("text", "path", "part"),
    [
        ("{scheme: ¦stripes, secret: S}", f"{V}.scheme", "did you mean 'stripe'?"),
        ("{scheme: github, secret: S, ¦tolerance: 5m}", f"{V}.tolerance", "no meaning with scheme github; it takes secret, secrets"),
        ("{scheme: gitlab, secret: S, ¦header: x}", f"{V}.header", "no meaning with scheme gitlab; it takes secret, secrets"),
        ("{scheme: slack, secret: S, ¦signed: '{body}'}", f"{V}.signed", "no meaning with scheme slack; it takes secret, secrets, tolerance"),
        ("{scheme: none, ¦secrets: [A]}", f"{V}.secrets", "no meaning with scheme none; it takes no other key"),
        ("{scheme: hmac, secret: S, header: x, ¦username: u}", f"{V}.username", "it takes secret, secrets, header, algorithm"),
        ("¦{scheme: stripe}", V, "'secret' is missing, scheme stripe needs it"),
        ("¦{scheme: hmac, secret: S}", V, "'header' is missing, scheme hmac needs it"),
        ("¦{scheme: basic, secret: S}", V, "'username' is missing, scheme basic needs it"),
        ("{scheme: github, secret: S, ¦secrets: [A]}", f"{V}.secrets", "'secrets' and 'secret' exclude each other"),
        ("{scheme: github, secrets: ¦[]}", f"{V}.secrets", "for example [NEW_SECRET, OLD_SECRET]"),
        ("{scheme: github, secrets: ¦A}", f"{V}.secrets", "must be a list of names of secrets"),
        ("{scheme: github, secrets: ¦[A, B, C, D, E]}", f"{V}.secrets", "has 5 entries; the limit is 4"),
        ("{scheme: github, secrets: [A, B, ¦A]}", f"{V}.secrets[2]", "'A' is there twice"),
        ("{scheme: github, secrets: [A, ¦low]}", f"{V}.secrets[1]", "not the name of a secret"),
        ("{scheme: token, secret: S, ¦header: x, query: y}", f"{V}.header", "exclude each other"),
        ("{scheme: token, secret: S, ¦prefix: x, query: y}", f"{V}.prefix", "exclude each other"),
        ("{scheme: token, secret: S, query: ¦'a&b'}", f"{V}.query", "not a parameter of a URL"),
        ("{scheme: token, secret: S, header: ¦'a b'}", f"{V}.header", "not a header name"),
        ("{scheme: basic, secret: S, username: ¦'a:b'}", f"{V}.username", "no colon"),
        ("{scheme: basic, secret: S, username: ¦''}", f"{V}.username", "not a user name"),
        ("{scheme: basic, secret: S, username: ¦7}", f"{V}.username", "write it in quotes"),
        ("{scheme: stripe, secret: S, tolerance: ¦2h}", f"{V}.tolerance", "from 1 to 3600 seconds"),
        ("{scheme: stripe, secret: S, tolerance: ¦500ms}", f"{V}.tolerance", "from 1 to 3600 seconds"),
        ("{scheme: stripe, secret: S, tolerance: ¦300}", f"{V}.tolerance", "with a unit"),
        ("{scheme: hmac, secret: S, header: x, ¦tolerance: 5m}", f"{V}.tolerance", "no meaning when no time is signed; add '{timestamp}' to 'signed'"),
        ("{scheme: hmac, secret: S, header: x, signed: ¦'{boddy}'}", f"{V}.signed", "'{boddy}' is no placeholder; did you mean '{body}'?"),
        ("{scheme: hmac, secret: S, header: x, signed: ¦'{body}.{}'}", f"{V}.signed", "'{}' is no placeholder"),
        ("{scheme: hmac, secret: S, header: x, signed: ¦'{body}.{'}", f"{V}.signed", "'{' is no placeholder"),
        ("{scheme: hmac, secret: S, header: x, signed: ¦'${{ secrets.A }}{body}'}", f"{V}.signed", "expressions are not possible here"),
        ("{scheme: hmac, secret: S, header: x, signed: ¦'{timestamp}', timestamp_header: t}", f"{V}.signed", "'{body}' is missing"),
        ("{scheme: hmac, secret: S, header: x, signed: ¦'{body}.{body}'}", f"{V}.signed", "only once"),
        ("{scheme: hmac, secret: S, header: x, signed: ¦'{timestamp}{body}', timestamp_header: t}", f"{V}.signed", "need a separator"),
        ("{scheme: hmac, secret: S, header: x, signed: ¦'{timestamp}0{body}', timestamp_header: t}", f"{V}.signed", "need a separator"),
        ("{scheme: hmac, secret: S, header: x, signed: ¦'{timestamp}.{body}'}", f"{V}.signed", "'{timestamp}' needs 'timestamp_header'"),
        ("{scheme: hmac, secret: S, header: x, signed: ¦'{id}.{body}'}", f"{V}.signed", "'{id}' needs 'id_header'"),
        ("{scheme: hmac, secret: S, header: x, ¦timestamp_header: t}", f"{V}.timestamp_header", "add '{timestamp}' to 'signed'"),
        ("{scheme: hmac, secret: S, header: x, ¦id_header: i}", f"{V}.id_header", "to recognise repetitions, use 'delivery_header'"),
        ("{scheme: hmac, secret: S, header: x, signed: ¦[a]}", f"{V}.signed", "must be a text, is a list"),
        ("¦github", V, "must be a map with scheme, secret"),
        ("{¦sheme: github, secret: S}", f"{V}.sheme", "did you mean 'scheme'?"),
    ],
)  # fmt: skip
def test_faults_are_named_and_pointed_at(faults, text, path, part):
    before, _, after = source(text).partition("¦")
    place = (before.count("\n") + 1, len(before) - before.rfind("\n"))
    found = faults(before + after)
    assert any(place == one[:2] and one[2] == path and part in one[3] for one in found), found
    assert len({one[:3] for one in found}) == len(found) <= 2


def test_every_fault_is_reported_at_once(faults):
    found = faults(
        source(
            "{scheme: hmac, secert: A, algorithm: md5, username: u, id_header: i, signed: '{ts}'}",
            "      wait: 1h\n      rate_limit: 10\n      dilevery_header: x\n",
        )
    )
    said = " | ".join(message for *_, message in found)
    for part in (
        "unknown key 'secert'; did you mean 'secret'?",
        "'secret' is missing",
        "'header' is missing",
        "'md5' is not possible",
        "'username' has no meaning with scheme hmac",
        "'id_header' proves nothing",
        "'{ts}' is no placeholder",
        "from 0.1 to 300 seconds",
        "'10' is no rate",
        "unknown key 'dilevery_header'; did you mean 'delivery_header'?",
    ):
        assert part in said


def test_a_wait_is_short(faults):
    for text in ("50ms", "6m"):
        [(*_, message)] = faults(source("{scheme: none}", f"      wait: {text}\n"))
        assert message == "must be from 0.1 to 300 seconds"


def test_editors_know_which_keys_go_with_which_scheme(faults):
    """Every pair of keys with every scheme: the JSON Schema and the compiler agree."""
    defs = {}
    schema = WEBHOOK.schema(defs) | {"$defs": defs}
    validator = jsonschema_rs.validator_for(schema)
    texts = {"secret": "S", "secrets": ["S"], "username": "u", "tolerance": "5m", "algorithm": "sha1", "header": "x"}
    schemes = ["github", "standard-webhooks", "stripe", "slack", "gitlab", "token", "hmac", "basic", "none"]
    accepted = 0
    for scheme, size in itertools.product(schemes, range(3)):
        for keys in itertools.combinations(texts, size):
            verify = {"scheme": scheme} | {key: texts[key] for key in keys}
            if scheme == "hmac" and "tolerance" in keys:
                continue  # goes with a time that is signed, which is more than a schema can say
            good = validator.is_valid({"path": "p", "verify": verify})
            assert good is (not faults(source(verify))), verify
            accepted += good
    assert accepted == 25
