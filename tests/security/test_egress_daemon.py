"""Threat: a step is made to reach what it should not. A real daemon, with the loop and the settings it has in service."""

import asyncio
import json
import ssl
from collections import Counter

import pytest
import trustme
from closed_urls import CLOSED_URLS
from harness import Daemon
from raw_server import Servers, answer
from switchboard import Board, state

FETCH = """
name: fetch
input: {type: object, required: [urls], properties: {urls: {type: array}}}
steps:
  - id: get
    for_each: ${{ input.urls }}
    continue_on_error: true
    http: {url: "${{ item }}", follow_redirects: 3}
"""
SECRET = """
name: sends
input: {type: object, required: [url], properties: {url: {type: string}}}
steps:
  - id: post
    http: {method: POST, url: "${{ input.url }}", headers: {Authorization: "Bearer ${{ secrets.TOKEN }}"}}
"""
PROGRAM = """
name: program
steps:
  - id: run
    shell: {command: [/usr/bin/true], env: {TOKEN: "${{ secrets.TOKEN }}"}}
"""
HOOKED = """
name: hooked
on: {in: {webhook: {path: in, verify: {scheme: none}}}}
steps: [{id: a, transform: 1}]
"""
CALLS = """
name: calls
input: {type: object, required: [url], properties: {url: {type: string}}}
steps:
  - id: post
    http: {method: POST, url: "${{ input.url }}", json: {}}
"""


@pytest.fixture(scope="module")
def closed():
    made = Daemon(env={"TASKFORGE_EGRESS_PRIVATE": "false", "TASKFORGE_SHELL_ALLOW": "/usr/bin/true"})
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
async def tight(closed):
    made = Board(closed)
    try:
        yield await made.fresh()
    finally:
        await made.close()


async def outcomes(board, workflow, **given):
    """Answer the state of a run and the errors of its steps."""
    run = (await board("StartRun", workflow=workflow, input_json=json.dumps(given))).run
    ended = await board.ended(run.id)
    return ended, {step.key: step.error for step in ended.steps if step.error.code}


async def test_sixty_spellings_reach_nothing(tight, effects):
    await tight.apply(FETCH)
    port = effects.url.rpartition(":")[2]
    urls = [url.replace("{port}", port) for url in CLOSED_URLS]
    _, errors = await outcomes(tight, "fetch", urls=urls)
    codes = Counter(error.code for error in errors.values())
    assert len(urls) >= 60
    assert codes.keys() <= {"egress_denied", "invalid_request"}, errors
    assert sum(codes.values()) - (errors.keys() >= {"get"}) >= len(urls)
    assert effects.calls() == {}


async def test_the_control_plane_is_closed_and_webhooks_are_open(board):
    await board.apply(CALLS)
    await board.apply(HOOKED)
    (grpc,) = [one for one in board.daemon.info["grpc"] if one.startswith("127.0.0.1:")]
    for host in ("127.0.0.1", "127.0.0.2", "localhost"):
        run, errors = await outcomes(board, "calls", url=f"http://{host}:{grpc.rpartition(':')[2]}/")
        assert state(run) == "FAILED"
        assert errors["post"].code == "egress_denied"
        assert "control plane" in errors["post"].message
    run, _ = await outcomes(board, "calls", url=f"{board.daemon.info['http']}/hooks/{board.namespace}/in")
    assert state(run) == "SUCCEEDED"


async def test_a_secret_stays_with_its_hosts(board, effects):
    await board.apply(SECRET)
    await board("SetSecret", name="TOKEN", value="a-secret-value", hosts=["api.example", "*.internal.example:443"])
    run, errors = await outcomes(board, "sends", url=f"{effects.url}/echo")
    assert (state(run), errors["post"].code) == ("FAILED", "secret_not_allowed")
    assert "*.internal.example:443, api.example" in errors["post"].message
    assert "a-secret-value" not in str(run)
    assert effects.calls() == {}
    await board("SetSecret", name="TOKEN", value="a-secret-value", hosts=["127.0.0.1"])
    run, _ = await outcomes(board, "sends", url=f"{effects.url}/echo")
    assert state(run) == "SUCCEEDED"
    assert len(effects.calls()) == 1


async def test_a_program_gets_no_secret_that_is_for_hosts(tight):
    await tight.apply(PROGRAM)
    await tight("SetSecret", name="TOKEN", value="a-secret-value", hosts=["api.example"])
    run, errors = await outcomes(tight, "program")
    assert state(run) == "FAILED"
    assert "may only be sent to api.example" in errors["run"].message


async def test_settings_that_cannot_be_used_name_their_place_and_no_password():
    for env, part in (
        ({"TASKFORGE_EGRESS_ALLOW": "10.0.0.1/8"}, "TASKFORGE_EGRESS_ALLOW"),
        ({"TASKFORGE_EGRESS_PORTS": "https"}, "TASKFORGE_EGRESS_PORTS"),
        ({"TASKFORGE_EGRESS_PROXY": "socks5://user:hidden-password@x:1"}, "TASKFORGE_EGRESS_PROXY"),
        ({"TASKFORGE_EGRESS_CA_FILE": "/nonexistent/ca.pem"}, "[egress] ca_file"),
    ):
        daemon = Daemon(env=env)
        try:
            process = daemon.spawn()
            assert await asyncio.to_thread(process.wait, 30) != 0
            log = daemon.log.read_text()
            assert part in log
            assert "hidden-password" not in log
            assert "Traceback" not in log
        finally:
            daemon.close()


async def test_a_daemon_behind_a_proxy_that_speaks_tls(tmp_path):
    """With the loop of the daemon: TLS within TLS, the operator's authority, and the password seen nowhere."""
    ca = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem.bytes())
    contexts = {name: ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for name in ("far.example", "127.0.0.1")}
    for name, context in contexts.items():
        ca.issue_cert(name).configure_cert(context)
    async with Servers() as servers:
        far = await servers.start(answer(200, b'{"far": true}'), tls=contexts["far.example"])
        proxy = await servers.start_proxy(hosts={"far.example": "127.0.0.1"}, tls=contexts["127.0.0.1"])
        daemon = Daemon(
            env={"TASKFORGE_EGRESS_PROXY": proxy.with_user, "TASKFORGE_EGRESS_CA_FILE": str(tmp_path / "ca.pem")}
        )
        board = Board(daemon)
        try:
            await asyncio.to_thread(daemon.start)
            await board.apply(CALLS)
            run, errors = await outcomes(board, "calls", url=f"https://far.example:{far.port}/x")
            assert state(run) == "SUCCEEDED", errors
            run, errors = await outcomes(board, "calls", url="http://169.254.169.254/")
            assert errors["post"].code == "egress_denied"
        finally:
            await board.close()
            await daemon.aclose()
        assert proxy.asked == [f"CONNECT far.example:{far.port}"]
        assert len(far.requests) == 1
