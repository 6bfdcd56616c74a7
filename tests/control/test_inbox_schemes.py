"""Webhooks from end to end: every scheme, every shape of body, what is told, what is kept, and what is not."""

import asyncio
import base64
import datetime as dt
import json
import sqlite3
import time

import pytest
from harness import FIXTURES, github_headers, github_payload
from standardwebhooks import Webhook
from switchboard import basic, hex_mac, state

from taskforged.store.events import WITHOUT_EFFECT_MAX, EventRow, insert_event
from taskforged.store.store import Store

SECRET = "It's a Secret to Everybody"
WHSEC = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
GITHUB = sorted(path.stem for path in (FIXTURES / "github").glob("*.json"))
JSON = {"Content-Type": "application/json"}


def hook(verify, *, name="hooked", path="in", more="", rules="", output="${{ event.body }}"):
    """A workflow behind a path that answers what it got."""
    return f"""
name: {name}
on:
  got:
    webhook: {{path: {path}, verify: {verify}{more}}}
{rules}
steps:
  - {{id: keep, transform: {{seen: "{output}"}}}}
output: "${{{{ steps.keep.output.seen }}}}"
"""


async def listen(board, verify, **options):
    await board.secret("HOOK", SECRET)
    await board.apply(hook(verify, **options))


# --- how senders sign ------------------------------------------------------------------------------------------------


def standard(body=b'{"a": 1}', secret=WHSEC, seconds=None, message="msg_1"):
    at = dt.datetime.fromtimestamp(time.time() if seconds is None else seconds, dt.UTC)
    return {
        **JSON,
        "webhook-id": message,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(message, at, body.decode()),
    }


def stripe(body, secret=SECRET, seconds=None):
    at = int(time.time() if seconds is None else seconds)
    return {**JSON, "Stripe-Signature": f"t={at},v1={hex_mac(secret, f'{at}.'.encode() + body)}"}


def slack(body, secret=SECRET, seconds=None):
    at = int(time.time() if seconds is None else seconds)
    signature = "v0=" + hex_mac(secret, f"v0:{at}:".encode() + body)
    return {**JSON, "X-Slack-Request-Timestamp": str(at), "X-Slack-Signature": signature}


def templated(body, secret=SECRET, seconds=None, message="m-1"):
    at = int(time.time() if seconds is None else seconds)
    signature = hex_mac(secret, f"v1:{at}:{message}:".encode() + body, "sha512")
    return {**JSON, "X-Sig": f"v1={signature}", "X-Time": str(at), "X-Id": message}


HMAC = (
    "{scheme: hmac, secret: HOOK, header: X-Sig, algorithm: sha512, prefix: v1=, "
    "signed: 'v1:{timestamp}:{id}:{body}', timestamp_header: X-Time, id_header: X-Id, tolerance: 1m}"
)
STRIPE_EVENT = b'{"id": "evt_1", "type": "charge.succeeded", "data": {"object": {"amount": 5}}}'
SLACK_EVENT = b'{"type": "event_callback", "event_id": "Ev1", "event": {"type": "app_mention"}}'


class Scheme:
    """A scheme as one sender uses it: how it is declared, and deliveries of the same content."""

    def __init__(self, verify, good, *, bad=None, query="", body=b'{"a": 1}', value=SECRET):
        self.verify, self.good, self.query, self.body, self.value = verify, good, query, body, value
        self.bad = bad or (lambda body: good(body, "wrong"))


SCHEMES = {
    "github": Scheme("{scheme: github, secret: HOOK}", lambda b, s=SECRET: github_headers(s, b, delivery="d-1")),
    "standard-webhooks": Scheme(
        "{scheme: standard-webhooks, secret: HOOK}",
        lambda b, s=WHSEC: standard(b, s),
        bad=lambda b: standard(b, WHSEC[:-4] + "AAAA"),
        value=WHSEC,
    ),
    "stripe": Scheme("{scheme: stripe, secret: HOOK}", stripe, body=STRIPE_EVENT),
    "slack": Scheme("{scheme: slack, secret: HOOK}", slack, body=SLACK_EVENT),
    "gitlab": Scheme(
        "{scheme: gitlab, secret: HOOK}",
        lambda _, s=SECRET: {**JSON, "X-Gitlab-Token": s, "X-Gitlab-Event": "Push Hook", "Idempotency-Key": "k-1"},
    ),
    "token": Scheme("{scheme: token, secret: HOOK}", lambda _, s=SECRET: {**JSON, "Authorization": f"Bearer {s}"}),
    "token-header": Scheme(
        "{scheme: token, secret: HOOK, header: X-Key, prefix: 'Key '}",
        lambda _, s=SECRET: {**JSON, "X-Key": f"Key {s}"},
    ),
    "basic": Scheme(
        "{scheme: basic, secret: HOOK, username: ci}", lambda _, s=SECRET: {**JSON, "Authorization": basic("ci", s)}
    ),
    "hmac": Scheme(HMAC, templated),
}
REPEATABLE = ["github", "standard-webhooks", "stripe", "slack", "gitlab", "hmac"]


@pytest.mark.parametrize("name", SCHEMES)
async def test_a_proved_sender_starts_a_run_and_a_forger_learns_nothing(board, name):
    scheme = SCHEMES[name]
    await board.secret("HOOK", scheme.value)
    await board.apply(hook(scheme.verify))
    answer = await board.post("in", scheme.body, scheme.good(scheme.body))
    assert (answer.status, answer.body["outcome"]) == (202, "ACCEPTED")
    assert await board.output(answer.body["run_ids"][0]) == json.loads(scheme.body)
    event = await board.event(answer.event_id)
    assert (event.verification, event.body) == (name.removesuffix("-header"), scheme.body)
    forged = await board.post("in", scheme.body, scheme.bad(scheme.body))
    bare = await board.post("in", scheme.body, JSON)
    changed = await board.post("in", scheme.body + b" ", scheme.good(scheme.body))
    is_signed = name in REPEATABLE and name != "gitlab"
    assert (forged.status, bare.status, changed.status) == (401, 401, 401 if is_signed else 202)
    assert forged.raw == bare.raw
    kept = await board.listed(outcomes=["REJECTED"])
    assert [one.reason.partition(":")[0] for one in kept] == [*["mismatch"] * is_signed, "missing", "mismatch"]


@pytest.mark.parametrize("name", REPEATABLE)
async def test_a_repetition_is_recognised_also_after_a_crash(own, name):
    scheme = SCHEMES[name]
    await own.secret("HOOK", scheme.value)
    await own.apply(hook(scheme.verify))
    headers = scheme.good(scheme.body)
    first = await own.post("in", scheme.body, headers)
    again = await own.post("in", scheme.body, headers)
    await own.restart()
    third = await own.post(
        "in", scheme.body, scheme.good(scheme.body)
    )  # signed anew: with another time where there is one
    assert (first.status, again.status, third.status) == (202, 200, 200)
    for one in (again, third):
        assert one.body == {**first.body, "outcome": "DUPLICATE"}
    assert len(await own.runs()) == 1
    assert {one.duplicate_of for one in await own.listed(outcomes=["DUPLICATE"])} == {first.event_id}


@pytest.mark.parametrize("name", ["token", "token-header", "basic"])
async def test_what_nothing_distinguishes_is_taken_each_time(board, name):
    scheme = SCHEMES[name]
    await listen(board, scheme.verify)
    answers = [await board.post("in", scheme.body, scheme.good(scheme.body)) for _ in range(2)]
    assert [one.status for one in answers] == [202, 202]


@pytest.mark.parametrize("name", ["github", "stripe", "basic"])
async def test_a_hundred_copies_at_once_are_one_run(board, name):
    scheme = SCHEMES[name]
    more = ", delivery_header: X-Delivery" if name == "basic" else ""
    await listen(board, scheme.verify, more=more)
    headers = {**scheme.good(scheme.body), "X-Delivery": "d-1"}
    answers = await asyncio.gather(*(board.post("in", scheme.body, headers) for _ in range(100)))
    assert sorted(one.status for one in answers) == [200] * 99 + [202]
    assert len({(one.event_id, *one.body["run_ids"]) for one in answers}) == 1
    assert len(await board.runs()) == 1


@pytest.mark.parametrize(
    ("verify", "value", "sign"),
    [
        ("{scheme: standard-webhooks, secret: HOOK}", WHSEC, standard),
        ("{scheme: stripe, secret: HOOK}", SECRET, stripe),
        ("{scheme: slack, secret: HOOK}", SECRET, slack),
        (HMAC, SECRET, templated),
        ("{scheme: stripe, secret: HOOK, tolerance: 1s}", SECRET, stripe),
    ],
)
async def test_an_old_time_is_refused_like_any_other_and_named_in_the_inbox(board, verify, value, sign):
    await board.secret("HOOK", value)
    await board.apply(hook(verify))
    body = b'{"a": 1}'
    old = await board.post("in", body, sign(body, seconds=time.time() - 4000))
    early = await board.post("in", body, sign(body, seconds=time.time() + 4000))
    bare = await board.post("in", body, JSON)
    assert [one.status for one in (old, early, bare)] == [401, 401, 401]
    assert old.raw == early.raw == bare.raw
    _, ahead, expired = (one.reason for one in await board.listed(outcomes=["REJECTED"]))
    assert expired.startswith("expired: the signature is right, but its time is 400")
    assert "ahead of our clock" in ahead
    assert await board.runs() == []


@pytest.mark.parametrize("name", SCHEMES)
async def test_two_secrets_while_one_is_changed(board, name):
    scheme = SCHEMES[name]
    new, old = (WHSEC, "whsec_" + base64.b64encode(b"x" * 24).decode()) if scheme.value == WHSEC else ("new", SECRET)
    await board.secret("NEW", new)
    await board.secret("OLD", old)
    await board.apply(hook(scheme.verify.replace("secret: HOOK", "secrets: [NEW, OLD]")))
    for index, value in enumerate((new, old)):
        body = b'{"n": %d}' % index
        headers = standard(body, value, message=f"m{index}") if scheme.value == WHSEC else scheme.good(body, value)
        headers |= {"X-Id": f"m-{index}"} if name == "hmac" else {}
        if name == "hmac":
            headers = templated(body, value, message=f"m-{index}")
        assert (await board.post("in", body, headers)).status == 202, value
    await board("DeleteSecret", name="OLD")
    last = standard(body, old, message="m9") if scheme.value == WHSEC else scheme.good(body, old)
    assert (await board.post("in", body, last)).status == 401
    assert "the secret OLD is not set" in (await board.listed(outcomes=["REJECTED"]))[0].reason


# --- particular senders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GITHUB)
async def test_github_payloads(board, name):
    kind = name.partition(".")[0]
    await listen(board, "{scheme: github, secret: HOOK}", output="${{ event.headers['x-github-event'] }}")
    body = github_payload(name)
    answer = await board.post("in", body, github_headers(SECRET, body, event=kind))
    if kind == "ping":
        assert (answer.status, answer.body["outcome"], answer.body["run_ids"]) == (200, "HANDSHAKE", [])
        assert await board.runs() == []
    else:
        assert answer.status == 202
        assert await board.output(answer.body["run_ids"][0]) == kind
        assert (await board.event(answer.event_id)).body == body


async def test_a_release_of_github_with_if_and_input(board):
    rules = """
    if: event.headers["x-github-event"] == "release" && event.body.action == "published"
    input: {tag: "${{ event.body.release.tag_name }}"}
input: {type: object, required: [tag], properties: {tag: {type: string}}}
"""
    await listen(board, "{scheme: github, secret: HOOK}", rules=rules, output="${{ input.tag }}")
    body = github_payload("release.published")
    answer = await board.post("in", body, github_headers(SECRET, body))
    assert await board.output(answer.body["run_ids"][0]) == "0.0.1"
    for name in set(GITHUB) - {"release.published", "ping"}:
        body = github_payload(name)
        other = await board.post("in", body, github_headers(SECRET, body, event=name.partition(".")[0]))
        assert (other.status, other.body["outcome"]) == (202, "FILTERED")
        verdict = (await board.event(other.event_id)).verdict["hooked/got"]
        assert verdict.clause == 'event.headers["x-github-event"] == "release"'
        assert list(json.loads(verdict.values_json).values()) == [name.partition(".")[0]]


async def test_slacks_challenge_is_answered_only_when_it_is_signed(board):
    await listen(board, "{scheme: slack, secret: HOOK}")
    body = b'{"type": "url_verification", "token": "x", "challenge": "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P"}'
    good = await board.post("in", body, slack(body))
    assert (good.status, good.body) == (200, {"challenge": json.loads(body)["challenge"]})
    for headers in (slack(body, "wrong"), slack(body, seconds=1), JSON):
        bad = await board.post("in", body, headers)
        assert bad.status == 401
        assert b"3eZbrw" not in bad.raw
    assert await board.runs() == []
    assert [one.outcome for one in await board.listed()] == ["REJECTED"] * 3 + ["HANDSHAKE"]


async def test_others_challenges_are_plain_deliveries(board):
    await board.apply(hook("{scheme: none}"))
    body = b'{"type": "url_verification", "challenge": "x"}'
    answer = await board.post("in", body)
    assert (answer.status, answer.body["outcome"]) == (202, "ACCEPTED")


async def test_a_form_of_slack_is_a_map(board):
    await listen(board, "{scheme: slack, secret: HOOK}", output="${{ event.body.command + event.encoding }}")
    body = b"command=%2Fdeploy&text=now"
    headers = {**slack(body), "Content-Type": "application/x-www-form-urlencoded"}
    answer = await board.post("in", body, headers)
    assert await board.output(answer.body["run_ids"][0]) == "/deployform"


async def test_a_token_in_the_address(board):
    await listen(board, "{scheme: token, secret: HOOK, query: key}", output="${{ event.query }}")
    await board.secret("HOOK", "sesame-1")
    assert (await board.post("in?key=wrong")).status == 401
    assert (await board.post("in?other=1")).status == 401
    assert (await board.post("in", headers={**JSON, "key": "sesame-1"})).status == 401
    answer = await board.post("in?key=sesame-1&a=b")
    assert await board.output(answer.body["run_ids"][0]) == {"key": "***", "a": "b"}


async def test_whoever_comes_is_welcome_without_a_scheme(board):
    await board.apply(hook("{scheme: none}", output="${{ string(event.body == null) + event.encoding }}"))
    answer = await board.post("in", b"")
    assert await board.output(answer.body["run_ids"][0]) == "trueempty"
    assert (await board.event(answer.event_id)).verification == "none"


# --- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "body", "seen", "encoding"),
    [
        ("application/json", b'{"a": [1, 2.5, null, "\xc3\xbc"]}', {"a": [1, 2.5, None, "ü"]}, "json"),
        ("application/vnd.api+json; charset=utf-8", b"[1]", [1], "json"),
        ("application/x-www-form-urlencoded", b"a=1&b=x+y&b=%C3%BC&c=", {"a": "1", "b": "ü", "c": ""}, "form"),
        ("text/plain", "grüße".encode(), "grüße", "text"),
        ("text/plain; charset=iso-8859-1", "grüße".encode("latin1"), "grüße", "text"),
        ("application/xml", b"<a/>", "<a/>", "text"),
        ("application/octet-stream", b"\x00\xff\x10", base64.b64encode(b"\x00\xff\x10").decode(), "base64"),
        ("image/png", b"\x89PNG\r\n", base64.b64encode(b"\x89PNG\r\n").decode(), "base64"),
        ("text/plain", b"\xff\xfe", base64.b64encode(b"\xff\xfe").decode(), "base64"),
        (None, b"hello", "hello", "text"),
        (None, b"\xff", base64.b64encode(b"\xff").decode(), "base64"),
    ],
)
async def test_bodies_as_expressions_see_them(board, content_type, body, seen, encoding):
    await board.apply(hook("{scheme: none}", output="${{ [event.body, event.encoding] }}"))
    answer = await board.post("in", body, {} if content_type is None else {"Content-Type": content_type})
    assert answer.status == 202
    assert await board.output(answer.body["run_ids"][0]) == [seen, encoding]
    event = await board.event(answer.event_id)
    assert (event.body, event.encoding, event.body_size) == (body, encoding, len(body))


# --- what is refused -------------------------------------------------------------------------------------------------


async def test_answers_give_nothing_away(board):
    """Why a sender is refused, or whether a path, a namespace or a secret exists beyond 401 and 404: nobody learns it."""
    for name, scheme in SCHEMES.items():
        await board.secret(f"S_{len(name)}", scheme.value)
        await board.apply(hook(scheme.verify.replace("HOOK", f"S_{len(name)}"), name=name, path=name))
    await board.apply(hook("{scheme: github, secret: UNSET}", name="unset", path="unset"))
    body = b'{"a": 1}'
    raws = set()
    for name, scheme in SCHEMES.items():
        for headers in (JSON, scheme.bad(body), {**JSON, "Authorization": "Basic !"}, slack(body, seconds=5)):
            answer = await board.post(name, body, headers)
            raws.add((answer.status, answer.raw, tuple(sorted(set(answer.headers) - {"Date"}))))
    answer = await board.post("unset", body, github_headers(SECRET, body))
    raws.add((answer.status, answer.raw, tuple(sorted(set(answer.headers) - {"Date"}))))
    assert len(raws) == 1
    assert raws.pop()[0] == 401


async def test_every_404_is_the_same(board):
    await listen(board, "{scheme: github, secret: HOOK}")
    await board("SetWorkflowActive", name="hooked", active=True)
    places = [
        ("nothing", ""),
        ("in", "nowhere"),
        ("in/more", ""),
        ("IN", ""),
        ("in%00", ""),
        ("", ""),
        ("in", "DEFAULT"),
    ]
    found = {}
    for path, namespace in places:
        answer = await board.post(path, github_payload("ping"), JSON, namespace=namespace)
        found[path, namespace] = (answer.status, answer.raw)
    assert {status for status, _ in found.values()} == {404}
    assert len({raw for _, raw in found.values()}) == 1, found
    assert await board.listed() == []


async def test_too_large_is_413_and_kept_in_part_only(board):
    await listen(board, "{scheme: github, secret: HOOK}")
    body = b'{"pad": "' + b"x" * (1 << 20) + b'"}'
    answer = await board.post("in", body, github_headers(SECRET, body))
    assert answer.status == 413
    (kept,) = await board.listed()
    assert (kept.outcome, kept.reason) == ("REJECTED", "the body is larger than 1,048,576 bytes")
    assert (await board.post("nothing", body, JSON)).status == 413, "no other answer for a path that does not exist"


async def test_bad_json_is_400_and_the_inbox_says_where(board):
    await listen(board, "{scheme: github, secret: HOOK}")
    for body in (b"{", b'{"a": 1, "a": 2}', b'{"a": NaN}', b"\xff"):
        answer = await board.post("in", body, github_headers(SECRET, body))
        assert (answer.status, answer.body["error"]["code"]) == (400, "invalid_body")
    kept = await board.listed(outcomes=["REJECTED"])
    assert len({one.reason for one in kept}) >= 3
    forged = await board.post("in", b"{", github_headers("wrong", b"{"))
    assert forged.status == 401, "a stranger does not learn whether his JSON is any"


async def test_too_many_deliveries_are_429_and_strangers_do_not_count(board):
    await listen(board, "{scheme: github, secret: HOOK}", more=", rate_limit: 2/h")
    bodies = [b'{"n": %d}' % n for n in range(4)]
    for body in bodies:
        assert (await board.post("in", body, github_headers("wrong", body))).status == 401
    answers = [await board.post("in", body, github_headers(SECRET, body)) for body in bodies]
    assert [one.status for one in answers] == [202, 202, 429, 429]
    assert 0 < int(answers[2].headers["Retry-After"]) <= 3600
    assert answers[2].raw == answers[3].raw
    assert (await board.listed(outcomes=["REJECTED"]))[0].reason == "more than 2 deliveries in 3600 s"
    assert len(await board.runs()) == 2


async def test_credentials_are_kept_nowhere(own):
    planted = ["tok-header-1f3a", "tok-query-2b4c", "basic-pass-3d5e", "gitlab-4f6a", "cookie-5c7d", "wrong-6e8f"]
    for name, value in zip(("A", "B", "C", "D"), planted, strict=False):
        await own.secret(name, value)
    verifies = {
        "token": "{scheme: token, secret: A, header: X-Key}",
        "query": "{scheme: token, secret: B, query: key}",
        "basic": "{scheme: basic, secret: C, username: ci}",
        "gitlab": "{scheme: gitlab, secret: D}",
    }
    for name, verify in verifies.items():
        output = "${{ [event.headers, event.query] }}"
        await own.apply(hook(verify, name=name, path=name, output=output))
    await own.apply(hook("{scheme: none}", name="open", path="open", output="${{ event.headers }}"))
    answers = [
        await own.post("token", b"{}", {**JSON, "X-Key": planted[0]}),
        await own.post(f"query?key={planted[1]}", b"{}"),
        await own.post("basic", b"{}", {**JSON, "Authorization": basic("ci", planted[2])}),
        await own.post("gitlab", b"{}", {**JSON, "X-Gitlab-Token": planted[3]}),
        await own.post("open", b"{}", {**JSON, "Cookie": planted[4], "X-Api-Key": planted[4]}),
    ]
    assert [one.status for one in answers] == [202] * 5
    refused = [
        await own.post("token", b"{}", {**JSON, "X-Key": planted[5]}),
        await own.post(f"query?key={planted[5]}", b"{}"),
        await own.post("basic", b"{}", {**JSON, "Authorization": basic("ci", planted[5])}),
        await own.post("gitlab", b"x" * (2 << 20), {**JSON, "X-Gitlab-Token": planted[3]}),
    ]
    assert [one.status for one in refused] == [401, 401, 401, 413]
    words = [*planted, *(basic("ci", planted[n]).removeprefix("Basic ") for n in (2, 5))]
    for event in [await own.event(one.id) for one in await own.listed()]:
        text = str(event.message)
        assert not [word for word in words if word in text]
    for one in answers:
        await own.ended(one.body["run_ids"][0])
    assert await asyncio.to_thread(own.daemon.terminate) == 0
    raw = b"".join(path.read_bytes() for path in own.daemon.home.rglob("*") if path.is_file())
    raw += own.daemon.log.read_bytes()
    assert not [word for word in words if word.encode() in raw]


async def test_rejected_deliveries_are_few_and_small(own):
    await listen(own, "{scheme: github, secret: HOOK}")
    body = b'{"pad": "' + b"x" * 3_000 + b'"}'
    answers = await asyncio.gather(*(own.post("in", body, github_headers("wrong", body)) for _ in range(1500)))
    assert {one.status for one in answers} == {401}
    kept = await own.listed(outcomes=["REJECTED"])
    assert 200 <= len(kept) < 1500, "a flood is not kept whole"
    event = await own.event(kept[0].id)
    assert (len(event.body), event.body_size, event.encoding) == (1024, len(body), "")


async def test_the_number_of_deliveries_without_effect_has_an_end(tmp_path):
    store = Store(tmp_path / "t.db")
    await store.start()

    def flood(connection):
        for no in range(1, WITHOUT_EFFECT_MAX + 501):
            outcome = ("REJECTED", "DUPLICATE", "HANDSHAKE", "FILTERED")[no % 4]
            texts = ("webhook", "p", outcome, "", "", "", "", "{}", "{}")
            insert_event(connection, EventRow(no, f"evt_{no}", 1, *texts, b"", 0, "", "", "[]", 1))
        for no in range(1, WITHOUT_EFFECT_MAX + 501):
            texts = ("webhook", "p", "REJECTED", "", "", "", "", "{}", "{}")
            row = EventRow(100_000 + no, f"evt_r{no}", 1, *texts, b"", 0, "", "", "[]", 1)
            insert_event(connection, row)

    await store.journal.execute(flood)
    await store.stop()
    with sqlite3.connect(tmp_path / "t.db") as connection:
        counts = dict(connection.execute("SELECT outcome, count(*) FROM events GROUP BY outcome"))
    assert counts["FILTERED"] == (WITHOUT_EFFECT_MAX + 500) // 4, "what had an effect stays"
    assert sum(counts.values()) - counts["FILTERED"] <= WITHOUT_EFFECT_MAX + 200


# --- answers that wait -----------------------------------------------------------------------------------------------


async def test_a_sender_who_waits_gets_the_output_and_so_does_a_repetition(own):
    await listen(own, "{scheme: github, secret: HOOK}", more=", wait: 20s", output="${{ {'n': event.body.n + 1} }}")
    headers = github_headers(SECRET, b'{"n": 1}', delivery="d-1")
    first = await own.post("in", b'{"n": 1}', headers)
    assert (first.status, first.body) == (200, {"n": 2})
    (run,) = await own.runs()
    assert first.headers["X-Taskforge-Run"] == run.id
    assert first.headers["X-Taskforge-Event"] == run.event_id
    again = await own.post("in", b'{"n": 1}', headers)
    await own.restart()
    third = await own.post("in", b'{"n": 1}', headers)
    for one in (again, third):
        assert (one.status, one.body, one.headers["X-Taskforge-Run"]) == (200, {"n": 2}, run.id)
    assert len(await own.runs()) == 1


async def test_a_sender_who_waits_for_a_run_that_fails_learns_no_details(board):
    source = """
name: failing
on:
  got:
    webhook: {path: in, verify: {scheme: none}, wait: 20s, delivery_header: X-Id}
steps:
  - {id: stop, fail: "the password of the database is hunter2"}
"""
    await board.apply(source)
    headers = {**JSON, "X-Id": "1"}
    first, again = await board.post("in", b"{}", headers), await board.post("in", b"{}", headers)
    for answer in (first, again):
        assert (answer.status, answer.body["error"]) == (
            500,
            {"code": "run_failed", "message": "the run did not succeed"},
        )
        assert b"hunter2" not in answer.raw
    (run,) = await board.runs()
    assert first.body["run_id"] == run.id
    assert first.body["state"] == state(run) == "FAILED"


async def test_a_run_that_takes_longer_than_the_wait_is_202(board):
    source = """
name: slow
on:
  got:
    webhook: {path: in, verify: {scheme: none}, wait: 100ms, delivery_header: X-Id}
steps:
  - {id: hold, wait: {signal: go}}
output: done
"""
    await board.apply(source)
    first = await board.post("in", b"{}", {**JSON, "X-Id": "1"})
    assert (first.status, first.body["outcome"]) == (202, "ACCEPTED")
    again = await board.post("in", b"{}", {**JSON, "X-Id": "1"})
    assert (again.status, again.body["outcome"]) == (200, "DUPLICATE")
    await board("SignalRun", run_id=first.body["run_ids"][0], signal="go")
    await board.ended(first.body["run_ids"][0])
    third = await board.post("in", b"{}", {**JSON, "X-Id": "1"})
    assert (third.status, third.body) == (200, "done")


async def test_a_repetition_answers_the_run_that_was_waited_for(board):
    """Another workflow on the same path, which does not wait, must not lend its output."""
    common = ", delivery_header: X-Id"
    await board.apply(hook("{scheme: none}", name="audit", more=common, output="private"))
    await board.apply(hook("{scheme: none}", name="reply", more=common + ", wait: 20s", output="public"))
    first = await board.post("in", b"{}", {**JSON, "X-Id": "1"})
    again = await board.post("in", b"{}", {**JSON, "X-Id": "1"})
    assert (first.body, again.body) == ("public", "public")


async def test_what_does_not_match_is_not_waited_for(board):
    await board.apply(hook("{scheme: none}", more=", wait: 20s", rules="    if: event.body.a == 1"))
    answer = await board.post("in", b'{"a": 2}')
    assert (answer.status, answer.body["outcome"]) == (202, "FILTERED")


# --- rest ------------------------------------------------------------------------------------------------------------


async def test_a_paused_trigger_keeps_its_deliveries(own):
    await listen(own, "{scheme: github, secret: HOOK}", more=", wait: 5s")
    await own("PauseTrigger", workflow="hooked", reason="the database is moving")
    for n in range(2):
        body = b'{"n": %d}' % n
        answer = await own.post("in", body, github_headers(SECRET, body))
        assert (answer.status, answer.body["outcome"], answer.body["run_ids"]) == (202, "FILTERED", [])
        event = await own.event(answer.event_id)
        assert (event.outcome, event.body) == ("FILTERED", body)
        (reason,) = event.reasons
        assert reason.startswith("the trigger is paused since 2")
        assert reason.endswith("Z: the database is moving")
        await own.restart()
    assert (await own.post("in", b"{}", JSON)).status == 401, "who is not proved is not, paused or not"
    await own("ResumeTrigger", workflow="hooked")
    assert (await own.replay(answer.event_id)).outcome == "ACCEPTED"


async def test_an_inactive_workflow_keeps_its_deliveries(board):
    await listen(board, "{scheme: github, secret: HOOK}")
    await board("SetWorkflowActive", name="hooked", active=False)
    answer = await board.post("in", b"{}", github_headers(SECRET, b"{}"))
    assert (answer.status, answer.body["outcome"]) == (202, "FILTERED")
    assert (await board.event(answer.event_id)).reasons == ["the workflow is not active"]
    await board("SetWorkflowActive", name="hooked", active=True)
    assert (await board.replay(answer.event_id)).outcome == "ACCEPTED"


async def test_a_paused_trigger_does_not_rest_the_others_on_its_path(board):
    await board.apply(hook("{scheme: none}", name="one"))
    await board.apply(hook("{scheme: none}", name="two"))
    await board("PauseTrigger", workflow="one")
    answer = await board.post("in")
    event = await board.event(answer.event_id)
    assert (answer.status, event.outcome) == (202, "ACCEPTED")
    assert (event.verdict["one/got"].matched, event.verdict["two/got"].matched) == (False, True)
    assert event.verdict["one/got"].reason.startswith("the trigger is paused since")


async def test_one_path_two_proofs(board):
    """A sender who is proved to one workflow starts nothing in another, to which he is not."""
    await listen(board, "{scheme: github, secret: HOOK}", name="signed")
    await board.apply(hook("{scheme: none}", name="open"))
    answer = await board.post("in", b"{}", JSON)
    assert answer.status == 202
    event = await board.event(answer.event_id)
    assert (event.verification, event.verdict["open/got"].matched) == ("none", True)
    assert event.verdict["signed/got"].reason == "missing: the header x-hub-signature-256 is missing"
    assert len(await board.runs(workflow="signed")) == 0


# --- a full disk -----------------------------------------------------------------------------------------------------


async def test_a_full_disk_takes_nothing_new_and_finishes_what_runs(own):
    slow = "name: slow\nsteps:\n  - {id: hold, wait: {signal: go}}\n  - {id: after, transform: {a: 1}}\noutput: done\n"
    await own.apply(slow)
    await own.apply(hook("{scheme: none}"))
    await own.apply("name: heard\non:\n  got: {event: {type: news}}\nsteps:\n  - {id: a, transform: 1}\n")
    run_id = (await own("StartRun", workflow="slow")).run.id
    before = (await own("PublishEvent", type="nobody")).event.id
    assert await asyncio.to_thread(own.daemon.terminate) == 0
    own.daemon.env["TASKFORGE_LIMITS_DISK_FREE_MIB"] = str(1 << 30)
    await asyncio.to_thread(own.daemon.start)
    answer = await own.post("in")
    assert (answer.status, answer.body["error"]["code"]) == (507, "insufficient_storage")
    assert int(answer.headers["Retry-After"]) == 30
    assert b"disk" not in answer.raw
    said = await own.refused("RESOURCE_EXHAUSTED", "StartRun", workflow="slow")
    assert "MiB left" in said
    assert "disk_free_mib" in said
    await own.refused("RESOURCE_EXHAUSTED", "PublishEvent", type="news")
    await own.refused("RESOURCE_EXHAUSTED", "FireTrigger", workflow="heard")
    await own.refused("RESOURCE_EXHAUSTED", "ReplayEvent", event_id=before, workflow="heard", trigger="got")
    assert (await own.post("nothing")).status == 404
    await own("SignalRun", run_id=run_id, signal="go")
    assert await own.output(run_id) == "done"
    assert len(await own.runs()) == 1
    assert await asyncio.to_thread(own.daemon.terminate) == 0
    del own.daemon.env["TASKFORGE_LIMITS_DISK_FREE_MIB"]
    await asyncio.to_thread(own.daemon.start)
    assert (await own.post("in")).status == 202
