"""A planted secret is searched for in everything that the daemon keeps, logs and answers: raw and in every masked form."""

import asyncio
import base64
import json
import subprocess
import sys
from urllib.parse import quote, quote_plus

import grpc
import pytest
from aiohttp import web
from harness import Daemon
from switchboard import METHODS, Board

SECRET = 'pl4nt"ed\\s3cret/v+lue&\u00e4'
LINES = "-----BEGIN-----\nfirst-planted-line\nsecond-planted-line\n-----END-----"


def forms():
    found = {"first-planted-line", "second-planted-line"}
    for text in (SECRET, LINES):
        raw = text.encode()
        found |= {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]}
        found |= {quote(text), quote(text, safe=""), quote_plus(text)}
        for offset in range(3):
            inner = base64.b64encode(b"x" * offset + raw).decode().rstrip("=")[4:-4]
            found |= {inner, inner.replace("+", "-").replace("/", "_")}
    return {one.encode() for one in found}


FORMS = forms()


async def echo(request):
    """Answer everything that came, in every form that programs echo it in."""
    token = request.headers.get("X-Token", "")
    text = base64.b64decode(token).decode() if request.path == "/b64" else (await request.text() or token)
    if request.path == "/slow":
        await asyncio.sleep(30)
    alignments = [base64.b64encode(b"." * n + text.encode() + b".." * n).decode() for n in range(3)]
    body = {
        "raw": text,
        text: "as a key",
        "json": json.dumps(text),
        "url": [quote(text), quote(text, safe=""), quote_plus(text)],
        "base64": alignments,
        "lines": text.splitlines(),
        "repr": repr(text),
    }
    headers = {"X-Echo": quote(text), "X-Base": alignments[1]}
    return web.json_response(body, status=500 if request.path == "/fail" else 200, headers=headers)


@pytest.fixture
async def echoing():
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", echo)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    await runner.cleanup()


def http(name, url, *, path="", secret="PLANTED", more=""):
    return f"""
name: {name}
steps:
  - id: call
    http: {{method: POST, url: "{url}{path}", text: "${{{{ secrets.{secret} }}}}"}}
{more}"""


PRINT = """import os, sys, time, base64
s = os.environ['S']
for part in (s[:5], s[5:] + '\\n'):
    sys.stdout.write(part); sys.stdout.flush(); time.sleep(0.2)
print(base64.b64encode(b'..' + s.encode()).decode())
print(repr(s), file=sys.stderr)
sys.exit(int(os.environ['CODE']))
"""


def shell(name, code, secret):
    return json.dumps(
        {
            "name": name,
            "steps": [
                {
                    "id": "print",
                    "shell": {
                        "command": [sys.executable, "-c", PRINT],
                        "env": {"S": f"${{{{ secrets.{secret} }}}}", "CODE": str(code)},
                    },
                }
            ],
        }
    )


PARENT = """
name: parent
steps:
  - id: child
    workflow: {name: answers}
  - id: tell
    event: {type: told, data: {all: "${{ steps.child.output }}"}}
output:
  all: ${{ steps.child.output }}
"""


async def workflows(board, url):
    """Apply everything that echoes the secret; answer the names."""
    passed = "output:\n  all: ${{ steps.call.output }}\n"
    retried = "    retry: {max_attempts: 2, strategy: fixed, delay: 1ms}\n"
    sources = [
        http("answers", url, more=passed),
        http("answers-lines", url, secret="LINES", more=passed),
        http("fails", url, path="/fail", more=retried),
        http("times-out", url, path="/slow", more="    timeout: 300ms\n    retry: {max_attempts: 1}\n"),
        http("unreachable", "http://127.0.0.1:9", more="    retry: {max_attempts: 1}\n"),
        shell("prints", 0, "PLANTED"),
        shell("prints-lines", 3, "LINES"),
        PARENT,
    ]
    return [(await board.apply(source)).workflow.name for source in sources]


async def answers(board, run_ids):
    """Everything that reading calls answer, as bytes."""
    found = []
    for name, (stub, message) in METHODS.items():
        if not name.startswith(("Get", "List", "Explain", "Verify")) or name == "GetRunLogs":
            continue
        fields = message.DESCRIPTOR.fields_by_name
        if "run_id" in fields:
            requests = [message(run_id=one) for one in run_ids]
        elif "event_id" in fields:
            requests = [message(event_id=one.id) for one in await board.listed()]
        else:
            requests = [message()]
        for request in requests:
            try:
                metadata = (("authorization", f"Bearer {board.daemon.token}"),)
                answer = await getattr(stub(board.channel), name)(request, metadata=metadata, timeout=30)
            except grpc.aio.AioRpcError as error:
                found.append(str(error.details()).encode())
            else:
                found += [answer.SerializeToString(), str(answer).encode()]
    for run_id in run_ids:
        answer = await board("GetRunLogs", run_id=run_id, page_size=1000)
        found.append(answer.SerializeToString())
    return found


def kept(daemon):
    """Every file of the home but the master key, and the log."""
    files = [one for one in daemon.home.rglob("*") if one.is_file() and one.name != "master.key"]
    return {str(one): one.read_bytes() for one in (*files, daemon.log)}


def leaks(where, content):
    return [(where, form) for form in FORMS if form in content]


async def test_a_planted_secret_is_nowhere(echoing):
    daemon = Daemon(env={"TASKFORGE_SHELL_ALLOW": sys.executable, "TASKFORGE_LOG_LEVEL": "debug"})
    board = Board(daemon)
    try:
        await asyncio.to_thread(daemon.start)
        await board.secret("PLANTED", SECRET)
        await board.secret("LINES", LINES)
        names = await workflows(board, echoing)
        runs = [(await board("StartRun", workflow=name)).run.id for name in names]
        states = {name: (await board.ended(run)).state for name, run in zip(names, runs, strict=True)}
        assert len(set(states.values())) >= 3, states  # it succeeds, fails and dies
        told = str(await board.run(runs[0]))
        assert "***" in told
        started = [(await board("StartRun", workflow=name)).run.id for name in names]
        for where, content in kept(daemon).items():
            assert not leaks(where, content)
        daemon.kill()
        for where, content in kept(daemon).items():
            assert not leaks(f"killed {where}", content)
        await asyncio.to_thread(daemon.start)
        for run in started:
            await board.ended(run)
        for content in await answers(board, [*runs, *started]):
            assert not leaks("an answer", content)
        for arguments in (
            ["run", "show", runs[0]],
            ["run", "logs", runs[5]],
            ["run", "history", runs[2]],
            ["secret", "list"],
        ):
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "taskforgectl", "--home", str(daemon.home), *arguments],
                capture_output=True,
                check=True,
                timeout=60,
            )
            assert not leaks(" ".join(arguments), done.stdout + done.stderr)
        assert daemon.terminate() == 0
        for where, content in kept(daemon).items():
            assert not leaks(f"stopped {where}", content)
    finally:
        await board.close()
        await daemon.aclose()


def test_no_call_answers_a_value():
    for name, (_, message) in METHODS.items():
        service = next(s for s in message.DESCRIPTOR.file.services_by_name.values() if name in s.methods_by_name)
        if service.name == "SecretService":
            answer = service.methods_by_name[name].output_type
            seen = {field.name for field in answer.fields}
            inner = {field.name for one in answer.fields if one.message_type for field in one.message_type.fields}
            assert not (seen | inner) & {"value", "plaintext", "ciphertext"}, name
    assert {name for name in METHODS if "Secret" in name} == {"SetSecret", "ListSecrets", "DeleteSecret"}
