"""CloudEvents over real HTTP: what comes in, who may, what is refused and why, and what goes out again."""

import asyncio
import base64
import io
import json

import pytest
from switchboard import Answer, eventually

from taskforged.payload import parse_cloud_events

ONE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"


def heard(kind="order.*", output="${{ steps.keep.output.seen }}", seen="event.body"):
    return f"""
name: ear
on: {{got: {{event: {{type: "{kind}"}}}}}}
steps:
  - {{id: keep, transform: {{seen: "${{{{ {seen} }}}}"}}}}
output: "{output}"
"""


def sample(**changes):
    event = {"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "order.paid", "data": {"total": 7}}
    return {name: value for name, value in (event | changes).items() if value is not ...}


class Gate:
    """The door for CloudEvents of a namespace, with a token."""

    def __init__(self, board, token):
        self.board = board
        self.token = token

    async def call(self, method, path="", body=None, headers=None, *, token=None, namespace=None):
        url = f"{self.board.daemon.http}/events/{namespace or self.board.namespace}{path}"
        bearer = self.token if token is None else token
        given = {**({"Authorization": f"Bearer {bearer}"} if bearer else {}), **(headers or {})}
        skip = [] if "Content-Type" in given else ["Content-Type"]
        data = io.BytesIO(body) if body and len(body) > 1 << 20 else body
        async with self.board.http.request(method, url, data=data, headers=given, skip_auto_headers=skip) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def send(self, event, content_type=ONE, **more):
        return await self.call("POST", body=json.dumps(event).encode(), headers={"Content-Type": content_type}, **more)

    async def get(self, path="", **more):
        return await self.call("GET", path, **more)


@pytest.fixture
async def gate(board):
    return Gate(board, board.daemon.token)


async def events_of(gate, answer):
    assert answer.status == 202, answer.raw
    return [await gate.board.decided(one) for one in answer.body["event_ids"]]


# --- in --------------------------------------------------------------------------------------------------------------


async def test_structured(gate):
    await gate.board.apply(heard(seen="[event.type, event.subject, event.origin, event.source, event.body]"))
    (event,) = await events_of(gate, await gate.send(sample(subject="o-1", time="2026-01-02T03:04:05Z", extra="x")))
    assert (event.outcome, event.source, event.type) == ("ACCEPTED", "internal", "order.paid")
    assert (event.origin, event.subject, event.delivery_id) == ("/shop", "o-1", "e-1")
    assert await gate.board.output(event.runs[0]) == ["order.paid", "o-1", "/shop", "internal", {"total": 7}]


async def test_binary(gate):
    await gate.board.apply(heard())
    headers = {"ce-specversion": "1.0", "ce-id": "e-2", "ce-source": "/shop", "ce-type": "order.paid"}
    answer = await gate.call(
        "POST", body=b'{"n": 1}', headers={**headers, "ce-subject": "%C3%BC", "Content-Type": "application/json"}
    )
    (event,) = await events_of(gate, answer)
    assert (event.subject, event.delivery_id) == ("ü", "e-2")
    assert await gate.board.output(event.runs[0]) == {"n": 1}
    raw = await gate.call("POST", body=b"\x00\xff", headers={**headers, "ce-id": "e-3", "Content-Type": "image/png"})
    (event,) = await events_of(gate, raw)
    assert await gate.board.output(event.runs[0]) == base64.b64encode(b"\x00\xff").decode()
    (event,) = await events_of(gate, await gate.call("POST", body=b"", headers={**headers, "ce-id": "e-4"}))
    assert await gate.board.output(event.runs[0]) is None


async def test_a_batch(gate):
    await gate.board.apply(heard())
    batch = [sample(id=f"b-{n}", data={"n": n}) for n in range(5)]
    events = await events_of(gate, await gate.send(batch, BATCH))
    assert [event.delivery_id for event in events] == [f"b-{n}" for n in range(5)]
    assert [await gate.board.output(event.runs[0]) for event in events] == [{"n": n} for n in range(5)]
    empty = await gate.send([], BATCH)
    assert (empty.status, empty.body) == (202, {"event_ids": []})


async def test_source_and_id_are_an_event_once(own):
    gate = Gate(own, own.daemon.token)
    await own.apply(heard())
    answers = await asyncio.gather(*(gate.send(sample()) for _ in range(50)))
    await own.restart()
    answers.append(await gate.send(sample(data={"total": 8})))
    assert {one.status for one in answers} == {202}
    assert len({one.raw for one in answers}) == 1
    others = [await gate.send(sample(**change)) for change in ({"id": "e-2"}, {"source": "/other"})]
    batch = await gate.send([sample(), sample(id="e-3"), sample(id="e-3")], BATCH)
    ids = batch.body["event_ids"]
    assert ids[0] == answers[0].body["event_ids"][0]
    assert ids[1] == ids[2]
    assert len({ids[0], ids[1], *(one.body["event_ids"][0] for one in others)}) == 4
    found = await eventually(own.listed, lambda found: all(one.outcome == "ACCEPTED" for one in found))
    assert len(found) == len(await own.runs()) == 4


async def test_namespaces_do_not_share_their_ids(gate):
    other = Gate(await gate.board.fresh(), gate.token)
    assert (await gate.send(sample())).raw != (await other.send(sample())).raw


# --- who may ---------------------------------------------------------------------------------------------------------


async def test_who_may(gate):
    may = {
        "TRIGGER": (202, 403),
        "VIEWER": (403, 200),
        "WORKER": (403, 403),
        "OPERATOR": (202, 200),
        "ADMIN": (202, 200),
    }
    for role, (send, get) in may.items():
        token = (await gate.board.token(role)).secret
        assert ((await gate.send(sample(), token=token)).status, (await gate.get(token=token)).status) == (send, get)
    token = (await gate.board.token("TRIGGER")).token
    (event,) = await events_of(gate, await gate.send(sample(id="mine")))
    assert event.created_by != token.id
    bodies = set()
    for wrong in ("", "x", gate.token[:-1] + ("a" if gate.token[-1] != "a" else "b"), "tfk_aaaaaaaaaaaa_" + "A" * 43):
        for answer in (await gate.send(sample(), token=wrong), await gate.get(token=wrong)):
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            bodies.add(answer.body["error"]["code"])
    assert bodies == {"unauthenticated"}
    basic = {"Authorization": "Basic " + base64.b64encode(gate.token.encode()).decode()}
    assert (await gate.call("GET", token="", headers=basic)).status == 401
    assert (await gate.call("GET", token="", headers={"Authorization": f"bearer  {gate.token}"})).status == 200


async def test_places_that_are_not_there(gate):
    for namespace in ("nowhere", "a%00", "N1"):
        answer = await gate.send(sample(), namespace=namespace)
        assert answer.status == 404
        assert (await gate.get(namespace=namespace)).status == 404
    assert (await gate.send(sample(), namespace="nowhere", token="")).status == 401
    other = await gate.board.fresh()
    token = (await gate.board.token("ADMIN")).secret
    assert (await gate.send(sample(), namespace=other.namespace, token=token)).status == 403
    foreign = (await Gate(other, gate.token).send(sample())).body["event_ids"][0]
    here, nothing = await gate.get(f"/{foreign}"), await gate.get("/evt_nope")
    assert (here.status, nothing.status) == (404, 404)
    assert here.body["error"] == {"code": "not_found", "message": f"there is no event {foreign!r}"}
    assert (await gate.get(f"/{foreign}", token=token)).raw == here.raw
    for method, path in (("PUT", ""), ("DELETE", "/x"), ("POST", "/x")):
        answer = await gate.call(method, path, body=b"{}")
        assert (answer.status, "GET" in answer.headers["Allow"]) == (405, True)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (sample(specversion=...), "attribute 'specversion' is missing"),
        (sample(specversion="0.3"), "attribute 'specversion' must be '1.0'"),
        (sample(id=...), "attribute 'id' is missing"),
        (sample(id=""), "attribute 'id' must not be empty"),
        (sample(id=7), "attribute 'id' must be a text"),
        (sample(source=...), "attribute 'source' is missing"),
        (sample(type=...), "attribute 'type' is missing"),
        (sample(type="x" * 201), "attribute 'type' has 201 characters"),
        (sample(type="run.succeeded"), "types that begin with run."),
        (sample(type="a b"), "type"),
        (sample(time="yesterday"), "attribute 'time' must be a time"),
        (sample(UPPER="x"), "'UPPER' is no name of an attribute"),
        (sample(subject="x" * 1025), "attribute 'subject' has 1,025 characters"),
        (sample(data_base64="x"), "'data' and 'data_base64' exclude each other"),
        (sample(data=..., data_base64="!"), "'data_base64' is not base64"),
        ([sample()], "must be a JSON object"),
    ],
)
async def test_what_is_wrong_is_said_and_nothing_is_stored(gate, event, said):
    answer = await gate.send(event)
    assert (answer.status, answer.body["error"]["code"]) == (400, "invalid_event")
    assert said in answer.body["error"]["message"]
    assert await gate.board.listed() == []


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (b"{", ONE, "the body is not acceptable JSON"),
        (b'{"id": 1, "id": 2}', ONE, "the body is not acceptable JSON"),
        (b"{}", BATCH, "a batch must be a list of events"),
        (b"<a/>", "application/cloudevents+xml", "the format 'application/cloudevents+xml' is not supported"),
        (b"{}", "application/json", "attribute 'specversion' is missing; is this a CloudEvent?"),
        (b"", "", "attribute 'specversion' is missing"),
    ],
)
async def test_what_is_no_cloud_event(gate, body, content_type, said):
    answer = await gate.call("POST", body=body, headers={"Content-Type": content_type} if content_type else {})
    assert (answer.status, answer.body["error"]["code"]) == (400, "invalid_event")
    assert said in answer.body["error"]["message"]


async def test_of_a_batch_with_a_fault_nothing_is_stored(gate):
    for bad, said in (({"id": ...}, "event 3 of the batch: attribute 'id'"), ({"type": "run.x"}, "[2].type")):
        answer = await gate.send([sample(id="a"), sample(id="b"), sample(**bad)], BATCH)
        assert answer.status == 400
        assert said in answer.body["error"]["message"]
    many = await gate.send([sample(id=str(n)) for n in range(101)], BATCH)
    assert "has 101 events; the limit is 100" in many.body["error"]["message"]
    assert await gate.board.listed() == []


async def test_too_large(gate):
    whole = await gate.send(sample(data="x" * (1 << 20)))
    assert whole.status == 413
    raw = b"\xff" * 900_000  # as base64 it is larger than an event may be
    headers = {"ce-specversion": "1.0", "ce-id": "e", "ce-source": "/s", "ce-type": "a", "Content-Type": "image/png"}
    grown = await gate.call("POST", body=raw, headers=headers)
    assert grown.status == 413, "it will not fit later either, so 429 would be a lie"
    assert "Retry-After" not in grown.headers
    assert await gate.board.listed() == []


async def test_no_room_on_the_disk(own):
    gate = Gate(own, own.daemon.token)
    assert await asyncio.to_thread(own.daemon.terminate) == 0
    own.daemon.env["TASKFORGE_LIMITS_DISK_FREE_MIB"] = str(1 << 30)
    await asyncio.to_thread(own.daemon.start)
    answer = await gate.send(sample())
    assert (answer.status, answer.headers["Retry-After"]) == (507, "30")
    assert (await gate.get()).status == 200


async def test_too_many_requests(own):
    gate = Gate(own, own.daemon.token)
    await own("SetNamespace", name="default", requests_per_second=0.01)
    answers = [await gate.send(sample(id=str(n))) for n in range(3)]
    assert [one.status for one in answers].count(429) >= 2
    assert int(answers[-1].headers["Retry-After"]) > 1


# --- out -------------------------------------------------------------------------------------------------------------


def parsed(answer, content_type):
    assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)
    return parse_cloud_events(content_type, {}, answer.raw, json.loads)


async def test_one_comes_out_as_it_went_in(gate):
    sent = sample(subject="o-1", data={"total": 7, "name": "ü"})
    event_id = (await gate.send(sent)).body["event_ids"][0]
    (event,) = parsed(await gate.get(f"/{event_id}"), ONE)
    assert (event.id, event.source, event.type, event.subject) == (event_id, "/shop", "order.paid", "o-1")
    assert event.data == sent["data"]
    assert event.time.endswith("Z")
    assert event.extensions == {"taskforgesource": "internal", "taskforgeoutcome": "UNMATCHED"}


async def test_a_list_is_a_batch_of_the_newest(gate):
    ids = [(await gate.board.publish(f"a.{n % 2}", {"n": n})).id for n in range(6)]
    await gate.board.apply("name: fails\nsteps:\n  - {id: a, fail: no}\n")
    run = (await gate.board("StartRun", workflow="fails")).run
    await eventually(lambda: gate.board.listed(type="run.failed"), lambda found: found)
    events = parsed(await gate.get(), BATCH)
    assert [one.id for one in events[1:]] == ids[::-1]
    assert (events[0].type, events[0].data["run_id"]) == ("run.failed", run.id)
    assert events[0].source == f"/taskforge/{gate.board.namespace}"
    assert [one.id for one in parsed(await gate.get("?type=a.1&limit=2"), BATCH)] == [ids[5], ids[3]]
    assert len(parsed(await gate.get("?type=a.*"), BATCH)) == 6
    assert parsed(await gate.get("?type=nope"), BATCH) == []
    for limit in ("0", "101", "-1", "x", "", "9999999", "00101", "1e1", "%D9%A3"):
        answer = await gate.get(f"?limit={limit}")
        assert (answer.status, answer.body["error"]["code"]) == (400, "invalid_argument"), limit


@pytest.mark.parametrize(
    ("content_type", "body", "data", "datacontenttype"),
    [
        ("application/json", b'{"a": 1}', {"a": 1}, "application/json"),
        ("application/json", b"", None, "application/json"),
        ("text/plain; charset=utf-8", b"hello", base64.b64encode(b"hello").decode(), "text/plain; charset=utf-8"),
        ("application/x-www-form-urlencoded", b"a=1", base64.b64encode(b"a=1").decode(), "application/x-www-form-urlencoded"),
        ("application/octet-stream", b"\x00\xff", "AP8=", "application/octet-stream"),
        ("text/json", b"{}", base64.b64encode(b"{}").decode(), "application/octet-stream"),
        ("garbage", b"x", base64.b64encode(b"x").decode(), "application/octet-stream"),
        (None, b"hello", base64.b64encode(b"hello").decode(), "application/octet-stream"),
    ],
)  # fmt: skip
async def test_whatever_came_by_a_webhook_goes_out(gate, content_type, body, data, datacontenttype):
    hook = "name: hook\non: {got: {webhook: {path: in, verify: {scheme: none}}}}\nsteps:\n  - {id: a, transform: 1}\n"
    await gate.board.apply(hook)
    sent = await gate.board.post("in", body, {} if content_type is None else {"Content-Type": content_type})
    (event,) = parsed(await gate.get(f"/{sent.event_id}"), ONE)
    assert (event.type, event.data, event.datacontenttype) == ("taskforge.webhook", data, datacontenttype)
    batch = parsed(await gate.get(), BATCH)
    assert "webhook" not in {one.extensions["taskforgesource"] for one in batch}, "they do not happen here"


async def test_what_was_refused_for_its_body_can_be_shown(gate):
    hook = "name: hook\non: {got: {webhook: {path: in, verify: {scheme: none}}}}\nsteps:\n  - {id: a, transform: 1}\n"
    await gate.board.apply(hook)
    assert (await gate.board.post("in", b"{")).status == 400
    (kept,) = await gate.board.listed(outcomes=["REJECTED"])
    (event,) = parsed(await gate.get(f"/{kept.id}"), ONE)
    assert event.extensions["taskforgeoutcome"] == "REJECTED"
    assert (base64.b64decode(event.data), event.datacontenttype) == (b"{", "application/octet-stream")


async def test_no_credential_goes_out(gate):
    await gate.board.secret("KEY", "sesame-77")
    hook = "name: hook\non: {got: {webhook: {path: in, verify: {scheme: token, secret: KEY, query: k}}}}\nsteps:\n  - {id: a, transform: 1}\n"
    await gate.board.apply(hook)
    sent = await gate.board.post("in?k=sesame-77")
    assert b"sesame-77" not in (await gate.get(f"/{sent.event_id}")).raw
