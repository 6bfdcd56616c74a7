"""Threats at the HTTP door: paths that reach past authorisation (CVE-2026-53576: a path that ends in `/configs`), forged
webhooks of a provider whose preset does not check (CVE-2026-21894), JSON that poses as an upload (CVE-2026-21858), line
breaks that become headers.

Bits of bodies, headers and times: `tests/control/test_signatures.py`; a proved and a forged sender of every scheme:
`tests/control/test_inbox_schemes.py`; slow, large and broken requests: `tests/triggers/test_webhook.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from urllib.parse import urlsplit

import grpc
import pytest
from control.test_inbox_schemes import SCHEMES
from switchboard import hex_mac, state
from taskforge.v1 import secret_service_pb2, secret_service_pb2_grpc

from taskforged.errors import InvalidArgumentError
from taskforged.language import compile_definition
from taskforged.language.webhooks import _SCHEMES

MARKER = "marker-9d2b"
HOOK = """
name: {name}
on:
  got:
    webhook: {{path: {path}, verify: {verify}}}
steps:
  - {{id: keep, transform: {{seen: "${{{{ event.body }}}}"}}}}
output: "${{{{ steps.keep.output.seen }}}}"
"""


_PEERS = itertools.count()


async def raw(board, target: str, *, method: str = "GET", headers: str = "", body: bytes = b"") -> tuple[int, bytes]:
    """Send a target as it is, which an ordinary client would tidy up first; each from an address of its own.

    Who fails too often from one address is answered 429, and that would hide what is looked for.
    """
    url = urlsplit(board.daemon.http)
    number = next(_PEERS)
    peer = f"127.77.{number // 250 % 250}.{number % 250 + 1}"
    reader, writer = await asyncio.open_connection(url.hostname, url.port, local_addr=(peer, 0))
    try:
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        writer.write(head.encode("latin-1") + body)
        answer = await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()
    return int(answer.split(b" ", 2)[1]), answer


OPEN = ("/healthz", "/readyz", "/metrics")
AFTER = ["{o}", "/..{o}", "/../..{o}", "/%2e%2e{o}", "/%2e%2e%2f..{o}", ";{o}", ";x={o}", "?{o}", "?path={o}", "#{o}",
         "//{o}", "/.{o}", "%2f{o}", "%00{o}", "{o}%00", "\\{o}", "{o}/", "{o}.json", "/configs", "/..;{o}"]  # fmt: skip
BEFORE = ["{o}/..{p}", "{o}/%2e%2e{p}", "{o}/..;{p}", "{o}{p}", "{o};{p}", "//{p}", "/.{p}", "/./{p}", "{o}?/../{p}",
          "/hooks/..{p}", "/hooks/default/..{p}", "http://x{p}", "http://x{o}/..{p}", "*{p}"]  # fmt: skip


async def test_no_way_of_writing_a_path_reads_events_without_a_token(board):
    event = await board.publish("a.b", {"is": MARKER})
    protected = [f"/events/{board.namespace}", f"/events/{board.namespace}/{event.id}"]
    token = f"Authorization: Bearer {board.daemon.token}\r\n"
    for path in protected:
        status, answer = await raw(board, path, headers=token)
        assert status == 200
        assert MARKER.encode() in answer
        for each in OPEN:
            targets = [path + one.format(o=each) for one in AFTER] + [one.format(o=each, p=path) for one in BEFORE]
            for target in [*targets, path.upper(), path.title(), f"/{path}/", path.replace("/events", "/Events")]:
                status, answer = await raw(board, target)
                assert MARKER.encode() not in answer, target
                assert status in {400, 401, 404, 405} or target.startswith(OPEN), (target, status)


async def test_no_way_of_writing_a_path_delivers_without_a_signature(board):
    await board.secret("HOOK", "secret-of-the-hook")
    await board.apply(HOOK.format(name="hooked", path="in", verify="{scheme: github, secret: HOOK}"))
    path = f"/hooks/{board.namespace}/in"
    kind = "Content-Type: application/json\r\n"
    for each in OPEN:
        for target in [path + one.format(o=each) for one in AFTER] + [one.format(o=each, p=path) for one in BEFORE]:
            status, _ = await raw(board, target, method="POST", headers=kind, body=b"{}")
            assert status >= 400, (target, status)
    assert await board.runs() == []


def test_every_preset_demands_a_proof_and_is_among_those_that_are_forged():
    """No scheme but `none`, which has to be written out, can be declared without a secret: CVE-2026-21894."""
    assert set(_SCHEMES) - {"none"} <= {name.removesuffix("-header") for name in SCHEMES}
    for scheme in set(_SCHEMES) - {"none"}:
        with pytest.raises(InvalidArgumentError):
            compile_definition(HOOK.format(name="x", path="in", verify=f"{{scheme: {scheme}}}"))
    with pytest.raises(InvalidArgumentError, match="verify"):
        compile_definition(HOOK.format(name="x", path="in", verify="{}"))
    with pytest.raises(InvalidArgumentError):
        compile_definition("name: x\non:\n  a: {webhook: {path: in}}\nsteps:\n  - {id: a, transform: 1}\n")


async def test_a_forged_event_of_stripe_starts_nothing(board):
    """CVE-2026-21894: whoever knew the address was believed."""
    await board.secret("HOOK", "whsec_real")
    await board.apply(HOOK.format(name="paid", path="stripe", verify="{scheme: stripe, secret: HOOK}"))
    body = b'{"id": "evt_1", "type": "checkout.session.completed", "data": {"object": {"amount_total": 1}}}'
    kind = {"Content-Type": "application/json"}
    now = int(time.time())
    wrong = hex_mac("whsec_other", f"{now}.".encode() + body)
    right = hex_mac("whsec_real", f"{now}.".encode() + body)
    forged = [
        {},
        {"Stripe-Signature": ""},
        {"Stripe-Signature": f"t={now},v1="},
        {"Stripe-Signature": f"t={now}"},
        {"Stripe-Signature": f"t={now},v1={wrong}"},
        {"Stripe-Signature": f"t={now},v0={right}"},
        {"Stripe-Signature": f"t={now + 1},v1={right}"},
        {"Stripe-Signature": f"t={now - 3600},v1={hex_mac('whsec_real', f'{now - 3600}.'.encode() + body)}"},
        {"Stripe-Signature": f"t={now},v1={hex_mac('', f'{now}.'.encode() + body)}"},
    ]
    for headers in forged:
        answer = await board.post("stripe", body, {**kind, **headers})
        assert answer.status == 401, headers
    assert await board.runs() == []
    good = await board.post("stripe", body, {**kind, "Stripe-Signature": f"t={now},v1={right}"})
    assert good.status == 202


async def test_json_that_poses_as_an_upload_stays_data(board):
    """CVE-2026-21858: `files` of the body were taken for what a parser of uploads had stored."""
    await board.apply(HOOK.format(name="upload", path="in", verify="{scheme: none}"))
    secret = board.daemon.home / "master.key"
    body = {
        "files": {"a": {"filepath": str(secret), "originalFilename": "x", "mimetype": "text/plain", "size": 5}},
        "filepath": str(secret),
        "$secret": "HOOK",
    }
    for kind in ("application/json", "application/vnd.api+json"):
        answer = await board.post("in", json.dumps(body).encode(), {"Content-Type": kind})
        assert await board.output(answer.body["run_ids"][0]) == body
    multipart = (
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="../../etc/passwd"\r\n\r\nhello\r\n--x--\r\n'
    )
    before = set(board.daemon.home.rglob("*"))
    answer = await board.post("in", multipart, {"Content-Type": "multipart/form-data; boundary=x"})
    seen = await board.output(answer.body["run_ids"][0])
    assert isinstance(seen, str), "parts are never taken apart"
    assert {file for file in set(board.daemon.home.rglob("*")) - before if "taskforge.db" not in file.name} == set()


async def test_line_breaks_of_a_sender_become_no_headers_of_ours(board, effects):
    source = f"""
name: relay
on:
  got:
    webhook: {{path: in, verify: {{scheme: none}}}}
    input: {{value: "${{{{ event.body }}}}", where: "${{{{ event.query.where }}}}"}}
steps:
  - id: send
    http:
      method: POST
      url: {effects.url}/echo
      query: {{value: "${{{{ input.value }}}}"}}
      headers: {{X-Value: "${{{{ input.where == 'header' ? input.value : 'x' }}}}"}}
      form: {{value: "${{{{ input.value }}}}"}}
"""
    await board.apply(source)
    for evil in ("a\r\nX-Injected: 1", "a\nX-Injected: 1", "a\r\n\r\nGET /admin HTTP/1.1\r\n"):
        for where in ("header", "query"):
            answer = await board.post(f"in?where={where}", evil.encode(), {"Content-Type": "text/plain"})
            run = await board.ended(answer.body["run_ids"][0])
            assert (state(run) == "SUCCEEDED") == (where == "query"), (evil, where, run.error)
    calls = [call for calls in effects.calls().values() for call in calls]
    assert {call.path for call in calls} == {"/echo"}, "no request was smuggled in"
    assert all(b"X-Injected: " not in call.body for call in calls)


async def test_metadata_of_a_call_cannot_pose_as_somebody_else(board):
    """Who calls is what the token says; names in other metadata or in a second header are nothing."""
    viewer = (await board.token("VIEWER")).secret
    metadata = (
        ("authorization", f"Bearer {viewer}"),
        ("authorization", f"Bearer {board.daemon.token}"),
        ("x-forwarded-user", "admin"),
        ("x-taskforge-role", "admin"),
    )
    stub = secret_service_pb2_grpc.SecretServiceStub(board.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListSecrets(secret_service_pb2.ListSecretsRequest(namespace=board.namespace), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
