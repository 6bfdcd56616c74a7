"""A sender is proved by the bytes he sent, or he is not; nothing in between."""

import ast
import base64
import datetime as dt
import hmac
import inspect
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from taskforged.control import signatures
from taskforged.control.signatures import Refusal, verify
from taskforged.language.definition import Verify

NOW = 1_700_000_000
FIXTURES = sorted((Path(__file__).parents[1] / "fixtures" / "github").glob("*.json"))


def prove(demand, secrets, headers, body=b"", now=NOW, query=None):
    secrets = [secrets] if secrets is None or isinstance(secrets, str) else secrets
    return verify(demand, secrets, headers, query or {}, body, now)


def code(*args, **options):
    refusal = prove(*args, **options)
    return None if refusal is None else refusal.code


def mac(key, payload, algorithm="sha256"):
    return hmac.new(key if isinstance(key, bytes) else key.encode(), payload, algorithm)


def flips(raw):
    """Every text that differs from `raw` in one bit."""
    for at in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[at // 8] ^= 1 << at % 8
        yield bytes(changed)


# --- GitHub ----------------------------------------------------------------------------------------------------------

GITHUB = Verify("github", ("HOOK",))
SECRET = "It's a Secret to Everybody"
BODY = b"Hello, World!"
SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def github(signature=SIGNATURE, secret=SECRET, body=BODY):
    return prove(GITHUB, secret, {"x-hub-signature-256": signature}, body)


def test_the_vector_that_github_documents():
    assert github() is None


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_recorded_payloads_of_github(path):
    body = path.read_bytes()
    signature = "sha256=" + mac(SECRET, body).hexdigest()
    assert github(signature, body=body) is None
    for at in range(0, len(body), 211):
        changed = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        assert github(signature, body=changed).code == "mismatch"
    assert github(signature, body=body + b"\n").code == "mismatch"
    assert github(signature, body=body[:-1]).code == "mismatch"


def test_the_prefix_belongs_to_the_scheme():
    assert github(SIGNATURE.removeprefix("sha256=")).code == "mismatch"


def test_what_a_definition_says_cannot_weaken_a_preset():
    lax = Verify("github", ("HOOK",), header="x-mine", algorithm="sha1", prefix="", signed="x")
    assert prove(lax, SECRET, {"x-hub-signature-256": SIGNATURE}, BODY) is None
    assert code(lax, SECRET, {"x-mine": mac(SECRET, BODY, "sha1").hexdigest()}, BODY) == "missing"


def test_every_flipped_bit_of_the_body_is_noticed():
    assert all(github(body=body) is not None for body in flips(BODY))


def test_every_flipped_bit_of_the_header_is_noticed():
    assert all(github(raw.decode("latin-1")) is not None for raw in flips(SIGNATURE.encode()))


@given(st.text(st.characters(exclude_categories=()), max_size=90))
def test_a_malformed_signature_is_a_mismatch(signature):
    assert github(signature).code == "mismatch"


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "sha256=",
        "sha1=" + "0" * 40,
        SIGNATURE + " ",
        SIGNATURE * 2,
        f"{SIGNATURE}, {SIGNATURE}",
        f"{SIGNATURE},{SIGNATURE}",
        "sha256=\udcff",
        "sha256=" + "ü" * 64,
        "SHA256=" + SIGNATURE[7:],
    ],
)
def test_near_misses(signature):
    assert github(signature) == Refusal("mismatch", "the signature in x-hub-signature-256 does not match")


def test_upper_case_hex_is_hex_and_mixed_case_is_nothing():
    assert github("sha256=" + SIGNATURE[7:].upper()) is None
    assert github("sha256=" + SIGNATURE[7:].upper()[:-1] + SIGNATURE[-1].swapcase()) is None  # ends in a digit
    assert github(SIGNATURE[:-3] + SIGNATURE[-3:].upper()) is not None


def test_a_missing_header_is_named():
    assert prove(GITHUB, SECRET, {}, BODY) == Refusal("missing", "the header x-hub-signature-256 is missing")


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("secret", "reason"), [(None, "the secret HOOK is not set"), ("", "the secret HOOK is empty")])
def test_without_a_secret_nothing_is_proved(secret, reason):
    assert github(secret=secret) == Refusal("no_secret", reason)


SCHEMES = [
    GITHUB,
    Verify("standard-webhooks", ("HOOK",)),
    Verify("stripe", ("HOOK",)),
    Verify("slack", ("HOOK",)),
    Verify("gitlab", ("HOOK",)),
    Verify("token", ("HOOK",), header="authorization", prefix="Bearer "),
    Verify("token", ("HOOK",), query="token"),
    Verify("hmac", ("HOOK",), header="x-signature"),
    Verify("basic", ("HOOK",), username="ci"),
]


def forged(key):
    """Everything that a sender could say who knows that the secret is `key`."""
    body, seconds = b"{}", str(NOW)
    github, slack = mac(key, body).hexdigest(), mac(key, f"v0:{NOW}:".encode() + body).hexdigest()
    standard = base64.b64encode(mac(key, f"msg.{NOW}.".encode() + body).digest()).decode()
    headers = {
        "x-hub-signature-256": f"sha256={github}",
        "x-signature": github,
        "webhook-id": "msg",
        "webhook-timestamp": seconds,
        "webhook-signature": f"v1,{standard}",
        "stripe-signature": f"t={NOW},v1=" + mac(key, f"{NOW}.".encode() + body).hexdigest(),
        "x-slack-signature": f"v0={slack}",
        "x-slack-request-timestamp": seconds,
        "x-gitlab-token": key,
    }
    return body, headers


@pytest.mark.parametrize("demand", SCHEMES, ids=lambda demand: demand.scheme)
@pytest.mark.parametrize("authorization", ["Bearer ", "Basic " + base64.b64encode(b"ci:").decode()])
@pytest.mark.parametrize("secret", ["", None])
def test_an_empty_secret_is_no_key_even_when_the_sender_uses_it(demand, authorization, secret):
    body, headers = forged("")
    headers["authorization"] = authorization
    assert code(demand, secret, headers, body, query={"token": ""}) == "no_secret"


@pytest.mark.parametrize("demand", SCHEMES, ids=lambda demand: demand.scheme)
def test_a_delivery_without_any_proof_lacks_it(demand):
    secret = "whsec_" + base64.b64encode(b"k" * 24).decode()
    assert code(demand, secret, {}, b"{}") == "missing"


@pytest.mark.parametrize("secrets", [[SECRET, "other"], ["other", SECRET], [None, SECRET], ["", "x", "y", SECRET]])
def test_any_of_several_secrets_proves_the_sender(secrets):
    demand = Verify("github", tuple("ABCD"[: len(secrets)]))
    assert prove(demand, secrets, {"x-hub-signature-256": SIGNATURE}, BODY) is None


def test_of_several_secrets_those_without_a_value_are_named_only_to_explain_a_refusal():
    demand = Verify("github", ("NEW", "OLD"))
    headers = {"x-hub-signature-256": SIGNATURE}
    reason = "the signature in x-hub-signature-256 does not match; the secret NEW is not set"
    assert prove(demand, [None, "wrong"], headers, BODY) == Refusal("mismatch", reason)
    both = "the secret NEW is not set; the secret OLD is empty"
    assert prove(demand, [None, ""], headers, BODY) == Refusal("no_secret", both)
    assert prove(Verify("github"), [], headers, BODY) == Refusal("no_secret", "no secret is named")


def test_names_and_values_of_secrets_belong_together():
    with pytest.raises(ValueError, match="zip"):
        prove(Verify("github", ("A", "B")), [SECRET], {"x-hub-signature-256": SIGNATURE}, BODY)


# --- Standard Webhooks -----------------------------------------------------------------------------------------------

STANDARD = Verify("standard-webhooks", ("HOOK",))
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE = "msg_p5jXN8AQM9LWM0D4loKWxJek"
PAYLOAD = '{"test": 2432232314}'
TIMESTAMP = 1_614_265_330


def standard(secret=WHSEC, body=PAYLOAD, message=MESSAGE, seconds=TIMESTAMP):
    sent = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return {
        "webhook-id": message,
        "webhook-timestamp": str(seconds),
        "webhook-signature": Webhook(secret).sign(message, sent, body),
    }


def test_the_reference_library_signs_what_we_take():
    headers = standard()
    # As the specification's repository publishes it.
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert prove(STANDARD, WHSEC, headers, PAYLOAD.encode(), TIMESTAMP) is None
    assert prove(STANDARD, WHSEC.removeprefix("whsec_"), headers, PAYLOAD.encode(), TIMESTAMP) is None


@given(st.text(st.characters(codec="utf-8"), max_size=50), st.binary(min_size=1, max_size=40), st.integers(0, 10**11))
def test_the_reference_library_signs_what_we_take_whatever_it_is(body, key, seconds):
    secret = "whsec_" + base64.b64encode(key).decode()
    headers = standard(secret, body, seconds=seconds)
    assert prove(STANDARD, secret, headers, body.encode(), seconds) is None
    assert code(STANDARD, secret, headers, body.encode() + b" ", seconds) == "mismatch"


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_every_header_of_standard_webhooks_is_needed_and_each_of_its_bits_counts(name):
    headers = standard()
    for raw in flips(headers[name].encode()):
        changed = headers | {name: raw.decode("latin-1")}
        assert prove(STANDARD, WHSEC, changed, PAYLOAD.encode(), TIMESTAMP) is not None, changed
    del headers[name]
    assert prove(STANDARD, WHSEC, headers, PAYLOAD.encode(), TIMESTAMP) == Refusal(
        "missing", f"the header {name} is missing"
    )


def test_every_flipped_bit_of_a_standard_body_is_noticed():
    headers = standard()
    assert {code(STANDARD, WHSEC, headers, body, TIMESTAMP) for body in flips(PAYLOAD.encode())} == {"mismatch"}


def test_several_signatures_are_taken_while_a_secret_is_changed():
    old, new = standard(WHSEC), standard("whsec_" + base64.b64encode(b"new" * 10).decode())
    signed = old | {"webhook-signature": f"v1a,AAAA {new['webhook-signature']} {old['webhook-signature']}"}
    assert prove(STANDARD, WHSEC, signed, PAYLOAD.encode(), TIMESTAMP) is None


def test_only_v1_signatures_count():
    headers = standard()
    headers["webhook-signature"] = headers["webhook-signature"].replace("v1,", "v1a,")
    assert code(STANDARD, WHSEC, headers, PAYLOAD.encode(), TIMESTAMP) == "missing"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda good: " ".join([good] * 16), None),
        (lambda good: " ".join([good] * 17), "malformed"),
        (lambda good: "v1,x " * 16 + good, "malformed"),
        (lambda good: f"{good}, {good}", "malformed"),
        (lambda good: f"v1,wrong, {good}", "malformed"),
        (lambda good: f"{good}, v1,wrong", "malformed"),
        (lambda good: good + " ", None),
        (lambda good: good + "=", "mismatch"),
        (lambda good: good.removeprefix("v1,"), "missing"),
        (lambda good: good.rstrip("="), "mismatch"),
    ],
)
def test_lists_of_signatures(change, wanted):
    headers = standard()
    headers["webhook-signature"] = change(headers["webhook-signature"])
    assert code(STANDARD, WHSEC, headers, PAYLOAD.encode(), TIMESTAMP) == wanted


@pytest.mark.parametrize("secret", ["whsec_", "whsec_!", "whsec_Q", "whsec_Q Q==", "plain text", "whsec_ü", "\ud800"])
def test_a_secret_of_standard_webhooks_is_base64(secret):
    body, headers = forged("")
    refusal = prove(STANDARD, secret, headers, body)
    assert refusal == Refusal("no_secret", "the secret HOOK is not whsec_ and base64, as this scheme wants it")


def test_the_padding_of_a_secret_does_not_matter():
    bare, padded = "whsec_c2VjcmV0IQ", "whsec_c2VjcmV0IQ=="
    assert prove(STANDARD, bare, standard(padded), PAYLOAD.encode(), TIMESTAMP) is None
    assert prove(STANDARD, padded, standard(bare), PAYLOAD.encode(), TIMESTAMP) is None


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp"])
def test_a_joined_header_is_malformed(name):
    headers = standard()
    headers[name] = f"{headers[name]}, {headers[name]}"
    assert code(STANDARD, WHSEC, headers, PAYLOAD.encode(), TIMESTAMP) == "malformed"


def test_nothing_moves_from_the_body_into_the_id():
    """`msg` + `1.2` and `msg.1` + `2` would be the same bytes to sign."""
    headers = standard(body=f"{TIMESTAMP}.rest")
    moved = headers | {"webhook-id": f"{MESSAGE}.{TIMESTAMP}"}
    assert prove(STANDARD, WHSEC, headers, f"{TIMESTAMP}.rest".encode(), TIMESTAMP) is None
    assert code(STANDARD, WHSEC, moved, b"rest", TIMESTAMP) == "malformed"


@pytest.mark.parametrize("message", ["", " ", "a b", "a\n", "ü", "a" * 257, "{timestamp}\x00", "a.b"])
def test_an_id_is_one_short_word(message):
    headers = standard() | {"webhook-id": message}
    assert code(STANDARD, WHSEC, headers, PAYLOAD.encode(), TIMESTAMP) == "malformed"


# --- time ------------------------------------------------------------------------------------------------------------

SLACK = Verify("slack", ("HOOK",))
SLACK_SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
SLACK_AT = 1_531_420_618
SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
    b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
    b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
SLACK_HEADERS = {
    "x-slack-request-timestamp": str(SLACK_AT),
    "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
}


def slack(now=SLACK_AT, body=SLACK_BODY, secret=SLACK_SECRET, demand=SLACK, **headers):
    changed = SLACK_HEADERS | {name.replace("_", "-"): value for name, value in headers.items()}
    return code(demand, secret, changed, body, now)


def test_the_vector_that_slack_documents():
    assert slack() is None


@pytest.mark.parametrize("name", ["x_slack_request_timestamp", "x_slack_signature"])
def test_every_flipped_bit_of_slacks_headers_is_noticed(name):
    for raw in flips(SLACK_HEADERS[name.replace("_", "-")].encode()):
        assert slack(**{name: raw.decode("latin-1")}) is not None, raw


def test_every_flipped_bit_of_slacks_body_is_noticed():
    assert {slack(body=body) for body in flips(SLACK_BODY)} == {"mismatch"}


@pytest.mark.parametrize(
    ("away", "wanted"),
    [(0, None), (300, None), (-300, None), (300.001, "expired"), (-300.001, "expired"), (1e9, "expired"), (float("nan"), "expired"), (float("inf"), "expired")],
)  # fmt: skip
def test_the_tolerance_counts_in_both_directions(away, wanted):
    assert slack(now=SLACK_AT + away) == wanted


def test_the_tolerance_can_be_chosen():
    short = Verify("slack", ("HOOK",), tolerance_s=1)
    assert slack(now=SLACK_AT + 1, demand=short) is None
    assert slack(now=SLACK_AT + 2, demand=short) == "expired"


def test_a_time_is_looked_at_only_when_the_signature_is_right():
    assert slack(now=0, body=b"forged") == "mismatch"
    assert slack(now=0, secret="wrong") == "mismatch"
    assert slack(x_slack_request_timestamp="1") == "mismatch"


def test_an_expired_delivery_says_by_how_much():
    late = prove(SLACK, SLACK_SECRET, SLACK_HEADERS, SLACK_BODY, SLACK_AT + 420)
    assert late.reason == "the signature is right, but its time is 420 s old; the limit is 300 s"
    early = prove(SLACK, SLACK_SECRET, SLACK_HEADERS, SLACK_BODY, SLACK_AT - 3600.4)
    assert "3600 s ahead of our clock" in early.reason


@pytest.mark.parametrize(
    "text",
    ["", " 1531420618", "1531420618 ", "+1531420618", "-1", "1_531_420_618", "1531420618.0", "1e9", "0x1", "١٥٣١٤٢٠٦١٨", "1531420618\n", "1" * 13, f"{SLACK_AT}, {SLACK_AT}", "\udcff", "²"],
)  # fmt: skip
def test_times_are_digits(text):
    """What `int` would take is signed as it stands, so the sender would be proved; it still is no time."""
    signature = (
        "v0=" + mac(SLACK_SECRET, b"v0:" + text.encode("utf-8", "surrogatepass") + b":" + SLACK_BODY).hexdigest()
    )
    assert slack(x_slack_request_timestamp=text, x_slack_signature=signature) == "malformed"


# --- Stripe ----------------------------------------------------------------------------------------------------------

STRIPE = Verify("stripe", ("HOOK",))
EVENT = b'{\n  "id": "evt_test_webhook",\n  "object": "event"\n}'


def v1(secret="whsec_test_secret", seconds=NOW, body=EVENT):
    return mac(secret, f"{seconds}.".encode() + body).hexdigest()


def stripe(header, secret="whsec_test_secret", body=EVENT, now=NOW):
    return code(STRIPE, secret, {"stripe-signature": header}, body, now)


def test_stripes_formula():
    """`t.body`, keyed with the whole text of the secret, `whsec_` included; the example of stripe-python's tests."""
    assert stripe(f"t={NOW},v1={v1()}") is None
    assert stripe(f"t={NOW},v1={v1('test_secret')}") == "mismatch"


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (f"t={NOW},v1={'0' * 64},v1={v1()}", None),
        (f"t={NOW},v1={v1()},v1={'0' * 64}", None),
        (f"t={NOW},v1={v1()},v0={'0' * 64}", None),
        (f"v1={v1()},t={NOW}", None),
        (f"t={NOW},v0={v1()}", "missing"),
        (f"t={NOW}", "missing"),
        (f"v1={v1()}", "malformed"),
        (f"t={NOW},t={NOW},v1={v1()}", "malformed"),
        (f"t=1,t={NOW},v1={v1()}", "malformed"),
        (f"t={NOW},v1={'0' * 64}, t={NOW},v1={v1()}", "malformed"),
        (f"t={NOW},v1={v1()}, v1={v1()}", "malformed"),
        (f"t={NOW}, v1={v1()}", "malformed"),
        (f"t=+{NOW},v1={v1()}", "malformed"),
        (f"t={NOW}.0,v1={v1()}", "malformed"),
        (f"t={NOW + 1},v1={v1()}", "mismatch"),
        (f"t={NOW},v1={v1()}=", "mismatch"),
        (f"t={NOW},v1={v1()}" + f",v1={'0' * 64}" * 15, None),
        (f"t={NOW},v1={v1()}" + f",v1={'0' * 64}" * 16, "malformed"),
        ("", "malformed"),
        ("t=,v1=", "malformed"),
        (",,,", "malformed"),
    ],
)
def test_stripes_header(header, wanted):
    assert stripe(header) == wanted


def test_every_flipped_bit_of_stripes_header_and_body_is_noticed():
    header = f"t={NOW},v1={v1()}"
    assert all(stripe(raw.decode("latin-1")) is not None for raw in flips(header.encode()))
    assert {stripe(header, body=body) for body in flips(EVENT)} == {"mismatch"}


def test_an_old_event_of_stripe_has_expired():
    assert stripe(f"t={NOW},v1={v1()}", now=NOW + 301) == "expired"
    assert stripe(f"t={NOW},v1={v1()}", now=NOW + 301, secret="x") == "mismatch"


# --- tokens ----------------------------------------------------------------------------------------------------------

BEARER = Verify("token", ("HOOK",), header="authorization", prefix="Bearer ")
QUERY = Verify("token", ("HOOK",), query="token")
GITLAB = Verify("gitlab", ("HOOK",))


@pytest.mark.parametrize(
    ("demand", "headers", "query"),
    [
        (BEARER, {"authorization": "Bearer {}"}, {}),
        (Verify("token", ("HOOK",), header="X-Token"), {"x-token": "{}"}, {}),
        (QUERY, {}, {"token": "{}"}),
        (GITLAB, {"x-gitlab-token": "{}"}, {}),
    ],
)
def test_tokens(demand, headers, query):
    def given_with(token):
        where = [{name: value.replace("{}", token) for name, value in one.items()} for one in (headers, query)]
        return code(demand, "s3cr?t ü", where[0], b"", query=where[1])

    assert given_with("s3cr?t ü") is None
    assert {given_with(raw.decode("utf-8", "surrogateescape")) for raw in flips("s3cr?t ü".encode())} == {"mismatch"}
    others = ["", "s3cr?t", "s3cr?t ü ", "S3CR?T Ü", "s3cr?t ü, s3cr?t ü", "s3cr\ud800t ü", "s3cr?t u\u0308"]
    assert {given_with(other) for other in others} == {"mismatch"}


def test_a_token_is_looked_for_in_one_place():
    assert code(QUERY, "s", {"token": "s", "authorization": "Bearer s"}) == "missing"
    assert code(BEARER, "s", {}, query={"authorization": "Bearer s"}) == "missing"
    assert code(Verify("token", ("HOOK",), query="token", prefix="Bearer "), "s", {}, query={"token": "s"}) is None
    assert code(BEARER, "s", {"authorization": "bearer s"}) == "mismatch"
    assert code(BEARER, "s", {"authorization": "s"}) == "mismatch"


BASIC = Verify("basic", ("HOOK",), username="ci-büro")


def basic(credentials, prefix="Basic ", demand=BASIC, secret="p:w?ß"):
    raw = credentials if isinstance(credentials, bytes) else credentials.encode()
    return code(demand, secret, {"authorization": prefix + base64.b64encode(raw).decode()})


@pytest.mark.parametrize(
    ("credentials", "wanted"),
    [
        ("ci-büro:p:w?ß", None),
        ("ci-büro:p:w?", "mismatch"),
        ("ci-büro:", "mismatch"),
        (":p:w?ß", "mismatch"),
        ("CI-büro:p:w?ß", "mismatch"),
        ("ci-büro:p:w?ß\n", "mismatch"),
        ("ci-büro", "malformed"),
        ("", "malformed"),
        ("ci-büro:p:w?ß".encode("latin-1"), "malformed"),
    ],
)
def test_basic_credentials(credentials, wanted):
    assert basic(credentials) == wanted


def test_every_flipped_bit_of_a_password_is_noticed():
    """Also those that base64 itself ignores."""
    for credentials in ("ci-büro:p:w?ß", "ci-büro:p:w?", "ci-büro:p:w"):
        header = b"Basic " + base64.b64encode(credentials.encode())
        secret = credentials.removeprefix("ci-büro:")
        assert prove(BASIC, secret, {"authorization": header.decode()}) is None
        for raw in flips(header):
            assert prove(BASIC, secret, {"authorization": raw.decode("latin-1")}) is not None, raw


@pytest.mark.parametrize(
    "header",
    ["", "Basic", "Basic ", "Bearer Y2k6cA==", "Basic Y2k6cA", "Basic Y2k6cA== ", "Basic  Y2k6cA==", "Basic Y2k6cA==, Basic Y2k6cA==", "Basic Y2k6\ncA==", "Basic Y2k-cA==", "Basic ü", "Basic \udcff", "basic Y2k6cA=="],
)  # fmt: skip
def test_basic_is_strict(header):
    demand = Verify("basic", ("HOOK",), username="ci")
    assert prove(demand, "p", {"authorization": "Basic Y2k6cA=="}) is None
    assert code(demand, "p", {"authorization": header}) == "malformed"


# --- hmac ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
@pytest.mark.parametrize("prefix", ["", "v1,", "ü="])
def test_hmac_in_every_form(algorithm, encoding, prefix):
    digest = mac("key", BODY, algorithm).digest()
    text = digest.hex() if encoding == "hex" else base64.b64encode(digest).decode()
    scheme = Verify("hmac", ("HOOK",), "X-Signature", algorithm=algorithm, encoding=encoding, prefix=prefix)
    assert prove(scheme, "key", {"x-signature": prefix + text}, BODY) is None
    assert prove(scheme, "Key", {"x-signature": prefix + text}, BODY) is not None
    assert prove(scheme, "key", {"x-signature": prefix + text.rstrip("=") + "A"}, BODY) is not None
    assert prove(scheme, "key", {"x-signature": "w" + prefix + text}, BODY) is not None
    assert prove(scheme, "key", {"x-signature": f"{prefix}{text}, {prefix}{text}"}, BODY) is not None


def test_every_spelling_of_base64_but_one_is_a_mismatch():
    text = base64.b64encode(mac("key", BODY, "sha1").digest()).decode()  # 20 bytes: the last letter has spare bits
    scheme = Verify("hmac", ("HOOK",), "x-signature", algorithm="sha1", encoding="base64")
    digest = base64.b64decode(text)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    others = {text[:-2] + letter + "=" for letter in letters} - {text}
    assert [one for one in others if base64.b64decode(one) == digest]
    assert {code(scheme, "key", {"x-signature": one}, BODY) for one in others} == {"mismatch"}


SIGNED = Verify(
    "hmac",
    ("HOOK",),
    "X-Sig",
    signed="v2:{timestamp}:{id}|{body}",
    timestamp_header="X-Time",
    id_header="X-Id",
    tolerance_s=60,
)


def signed(message="a-1.b", seconds=str(NOW), body=BODY, text=None):
    payload = (text or f"v2:{seconds}:{message}|").encode() + body
    return {"x-sig": mac("key", payload).hexdigest(), "x-time": seconds, "x-id": message}


def test_hmac_over_a_template():
    assert prove(SIGNED, "key", signed(), BODY) is None
    assert code(SIGNED, "key", signed(), BODY, now=NOW + 61) == "expired"
    assert code(SIGNED, "key", signed() | {"x-id": "a-2"}, BODY) == "mismatch"
    assert code(SIGNED, "key", signed() | {"x-time": str(NOW + 1)}, BODY) == "mismatch"
    for name in signed():
        assert code(SIGNED, "key", {k: v for k, v in signed().items() if k != name}, BODY) == "missing"
    for name in signed():
        assert {code(SIGNED, "key", signed() | {name: raw.decode("latin-1")}, BODY) for raw in flips(signed()[name].encode())} <= {"mismatch", "malformed"}  # fmt: skip


def test_placeholders_are_filled_once():
    """An id that looks like a placeholder is text."""
    assert code(SIGNED, "key", signed("{timestamp}", text=f"v2:{NOW}:{NOW}|"), BODY) == "mismatch"
    assert code(SIGNED, "key", signed("{body}"), BODY) is None


@pytest.mark.parametrize("message", ["a:b", "a|b", "", "a b"])
def test_an_id_contains_none_of_its_borders(message):
    assert code(SIGNED, "key", signed(message), BODY) == "malformed"


def test_the_ends_of_a_template_are_no_borders():
    demand = Verify("hmac", ("HOOK",), "x-sig", signed="a-{id}.{body}-z", id_header="x-id")
    headers = {"x-sig": mac("key", b"a-1-2.x-z").hexdigest(), "x-id": "1-2"}
    assert prove(demand, "key", headers, b"x") is None


@given(st.text("a.:1", max_size=4), st.binary(max_size=3), st.text("a.:1", max_size=4), st.binary(max_size=3))
def test_what_is_signed_can_be_read_in_one_way_only(id_a, body_a, id_b, body_b):
    demand = Verify("hmac", ("HOOK",), "x-sig", signed="{id}.:{body}", id_header="x-id")
    sent = {"x-sig": mac("key", f"{id_a}.:".encode() + body_a).hexdigest(), "x-id": id_b}
    if prove(demand, "key", sent, body_b) is None:
        assert (id_a, body_a) == (id_b, body_b)


# --- the rest --------------------------------------------------------------------------------------------------------


def test_no_scheme_proves_nothing_and_asks_for_nothing():
    assert prove(Verify("none"), [], {}) is None


@pytest.mark.parametrize(
    "demand",
    [
        Verify("", ("HOOK",)),
        Verify("None", ("HOOK",)),
        Verify("GITHUB", ("HOOK",)),
        Verify("token", ("HOOK",)),
        Verify("hmac", ("HOOK",)),
        Verify("hmac", ("HOOK",), "x", algorithm="md5"),
        Verify("hmac", ("HOOK",), "x", encoding="base32"),
        Verify("hmac", ("HOOK",), "x", signed="{timestamp}"),
    ],
)
def test_what_is_not_known_is_refused(demand):
    refusal = prove(demand, SECRET, {"x": ""})
    assert refusal.code == "malformed"
    assert "not supported" in refusal.reason


@pytest.mark.parametrize("demand", [*SCHEMES, SIGNED], ids=lambda demand: demand.scheme)
@given(st.data())
def test_whatever_arrives_there_is_a_verdict_without_a_secret(demand, data):
    anything = st.text(st.characters(exclude_categories=()), max_size=30)
    _, near = forged("x")
    names = [*near, "authorization", "x-sig", "x-time", "x-id"]
    values = st.one_of(anything, st.sampled_from([*near.values(), "t=1,v1=x", "v1,x", "Basic eDp4"]))
    headers = data.draw(st.dictionaries(st.sampled_from(names), values))
    query = data.draw(st.dictionaries(st.just("token"), anything))
    secret = "whsec_U0VDUkVUU0VDUkVU"
    refusal = prove(demand, secret, headers, data.draw(st.binary(max_size=20)), query=query)
    assert refusal.code in {"missing", "mismatch", "expired", "malformed"}
    assert secret not in refusal.reason
    assert not [one for one in (*headers.values(), *query.values()) if len(one) > 8 and one in refusal.reason]


def test_reasons_name_neither_the_secret_nor_any_signature():
    expected = mac("key", BODY).hexdigest()
    for headers in ({}, {"x-signature": "given-signature"}, {"x-signature": expected + "0"}):
        reason = prove(Verify("hmac", ("HOOK",), "x-signature"), "key", headers, BODY).reason
        assert "given-signature" not in reason
        assert expected not in reason


def test_every_comparison_takes_constant_time():
    """No `==` at all; `in`, `<` and the like only for schemes, shapes and times; `compare_digest` never stops early."""
    tree = ast.parse(inspect.getsource(signatures))
    comparisons = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    assert not [ast.unparse(node) for node in comparisons for op in node.ops if isinstance(op, (ast.Eq, ast.NotEq))]
    hot = {"keys", "key", "secret", "secrets", "digest", "digests", "spelling", "spellings", "given", "one", "expected"}
    for node in comparisons:
        if not isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
            # The one exception looks for a colon in the credentials that were given, which are no secret of ours.
            assert not names & hot or ast.unparse(node).startswith("':' in "), ast.unparse(node)
    lists = [one for node in ast.walk(tree) if isinstance(node, ast.ListComp) for one in ast.walk(node)]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "compare_digest"]
    assert len(calls) == 2
    assert all(call in lists for call in calls), "a generator inside any() stops at the first match"
