"""Threats: stored text that is rendered later with somebody else's rights (CVE-2024-56373), stored tags that name code
(CVE-2026-45360), data that poses as a secret, values that reach a shell.

What a shell step makes of arguments, of `LD_PRELOAD`, of descendants and of floods is in
`tests/steps/test_shell_step.py`; here such values come over a webhook.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import sqlite3
import sys

import pytest
from harness import Daemon
from switchboard import Board, state

from taskforged.engine import events, model
from taskforged.engine.events import FACT_KINDS

SECRET = "value-of-the-secret-42"
TEMPLATE = "${{ secrets.KEY }} ${{ input }} {{ secrets.KEY }} {{7*7}} <%= 7*7 %> $KEY ${KEY} %(KEY)s {0.__class__}"
RELAY = """
name: relay
on:
  got:
    webhook: {path: relay, verify: {scheme: none}}
    input: {text: "${{ event.body.text }}"}
steps:
  - id: keep
    transform: {text: "${{ input.text }}", inside: "<${{ input.text }}>"}
  - id: send
    http:
      method: POST
      url: URL/echo
      headers: {Authorization: "Bearer ${{ secrets.KEY }}"}
      json: {text: "${{ steps.keep.output.text }}", inside: "${{ steps.keep.output.inside }}"}
  - id: say
    event: {type: relay.said, data: {text: "${{ steps.send.output.body.body }}"}}
  - id: stop
    fail: "no: ${{ steps.keep.output.text }}"
on_failure:
  - id: tell
    http: {method: POST, url: "URL/alert", text: "${{ error.message }}"}
"""


async def test_an_output_that_looks_like_a_template_stays_text_wherever_it_goes(board, effects):
    """Through a trigger, an input, an output, a request, an event, an error, a replay, a retry: nothing renders it."""
    await board.secret("KEY", SECRET)
    await board.apply(RELAY.replace("URL", effects.url))
    answer = await board.post("relay", json.dumps({"text": TEMPLATE}).encode())
    run = await board.ended(answer.body["run_ids"][0])
    assert (state(run), run.error.message) == ("FAILED", f"no: {TEMPLATE}")
    replay = await board.replay(answer.event_id, body=json.dumps({"text": TEMPLATE}).encode())
    assert (await board.ended(replay.runs[0])).error.message == f"no: {TEMPLATE}"
    again = await board("RetryRun", run_id=run.id)
    await board.ended(again.run.id)
    calls = [call for calls in effects.calls().values() for call in calls]
    assert len([call for call in calls if call.path == "/echo"]) == 2
    for call in calls:
        text = call.body.decode() if call.path == "/alert" else json.loads(call.body)["text"]
        assert text.removeprefix("no: ") == TEMPLATE
        assert SECRET.encode() not in call.body
    said = (await board.listed(type="relay.said"))[0]
    assert TEMPLATE in json.loads(json.loads((await board.event(said.id)).body)["text"])["text"]


@pytest.mark.parametrize(
    "text",
    [
        {"$secret": "KEY"},
        {"a": [{"$secret": "KEY"}]},
        {"$concat": ["Bearer ", {"$secret": "KEY"}]},
        {"$secret": "KEY", "x": 1},
    ],
)
async def test_data_that_poses_as_a_reference_to_a_secret_never_becomes_it(board, effects, text):
    await board.secret("KEY", SECRET)
    await board.apply(
        f"""
name: pose
steps:
  - id: send
    http: {{method: POST, url: "{effects.url}/echo", json: "${{{{ input.value }}}}"}}
output: "${{{{ input.value }}}}"
"""
    )
    answer = await board("StartRun", workflow="pose", input_json=json.dumps({"value": text}))
    run = await board.ended(answer.run.id)
    assert state(run) == "FAILED"
    assert not [call for calls in effects.calls().values() for call in calls if SECRET.encode() in call.body]
    assert SECRET not in run.output_json + str(run.error)


@pytest.fixture(scope="module")
def with_programs():
    """A daemon that may execute one program."""
    made = Daemon(env={"TASKFORGE_SHELL_ALLOW": sys.executable})
    try:
        yield made.start()
    finally:
        made.close()


async def test_what_a_stranger_sends_reaches_a_program_as_whole_arguments(with_programs, tmp_path):
    board = Board(with_programs)
    script = "import json, os, sys; print(json.dumps([sys.argv[1:], sorted(os.environ)]))"
    definition = {
        "name": "args",
        "on": {"got": {"webhook": {"path": "args", "verify": {"scheme": "none"}}, "input": {"v": "${{ event.body }}"}}},
        "steps": [
            {
                "id": "call",
                "shell": {
                    "command": [sys.executable, "-I", "-c", script, "${{ input.v }}", "--name=${{ input.v }}"],
                    "output": "json",
                },
            }
        ],
        "output": "${{ steps.call.output.json }}",
    }
    marker = tmp_path / "marker"
    try:
        await board.apply(json.dumps(definition))
        for evil in ("; id", f"$(touch {marker})", f"`touch {marker}`", f"x\ntouch {marker}", f"x; touch {marker} #",
                     "-rf", "--help", "*", "~", "$HOME", "'", '"', "\\", "a b", "&& id", "| id", "> /tmp/x", "%s"):  # fmt: skip
            answer = await board.post("args", json.dumps(evil).encode())
            arguments, names = await board.output(answer.body["run_ids"][0])
            assert arguments == [evil, f"--name={evil}"]
            assert not [name for name in names if name == "TASKFORGE_SHELL_ALLOW" or "TOKEN" in name]
        answer = await board.post("args", b'"a\\u0000b"')
        if answer.status == 202:
            run = await board.ended(answer.body["run_ids"][0])
            assert state(run) == "FAILED"
        assert not marker.exists()
    finally:
        await board.close()


# --- tags ------------------------------------------------------------------------------------------------------------


def test_tags_in_stored_state_are_members_of_enumerations():
    """CVE-2026-45360: a stored tag named a class, and the scheduler imported it. Here a tag is looked up in a table."""
    for kind in FACT_KINDS.values():
        assert type(kind)(kind.value) is kind
    kinds = type(next(iter(FACT_KINDS.values())))
    for evil in ("os.system", "taskforged.steps.shell.Shell", "builtins.eval", "__class__", ""):
        with pytest.raises(ValueError):
            kinds(evil)
    for module in (events, model):
        calls = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Call)]
        names = {ast.unparse(call.func) for call in calls}
        assert not names & {
            "globals",
            "locals",
            "importlib.import_module",
            "__import__",
            "eval",
            "exec",
            "getattr_static",
        }


CHANGES = {
    "kind = 'os.system'": "'os.system' is not a valid Kind",
    "body = CAST('x' AS BLOB)": "an event cannot be read",
    "body = CAST('[1]' AS BLOB)": "the hash of sequence 2 does not fit",
    "step = '__class__'": "the hash of sequence 2 does not fit",
}


async def test_a_history_that_somebody_changed_is_not_believed_and_stops_nobody_else(own):
    await own.apply("name: asks\nsteps:\n  - {id: a, wait: {approval: ok}}\n")
    await own.apply("name: fine\nsteps:\n  - {id: a, transform: 1}\n")
    broken = {change: (await own("StartRun", workflow="asks")).run.id for change in CHANGES}
    whole = (await own("StartRun", workflow="asks")).run.id
    assert own.daemon.terminate() == 0
    connection = sqlite3.connect(own.daemon.home / "taskforge.db")
    connection.execute("DROP TRIGGER history_is_append_only")
    for change, run_id in broken.items():
        where = "run_no = (SELECT no FROM runs WHERE id = ?) AND sequence = 2"
        assert connection.execute(f"UPDATE history SET {change} WHERE {where}", (run_id,)).rowcount == 1
    connection.commit()
    connection.close()
    await asyncio.to_thread(own.daemon.start)
    assert state(await own.ended((await own("StartRun", workflow="fine")).run.id)) == "SUCCEEDED"
    await own("ApproveRun", run_id=whole)
    assert state(await own.ended(whole)) == "SUCCEEDED"
    for change, run_id in broken.items():
        verdict = await own("VerifyRun", run_id=run_id)
        assert not verdict.intact
        assert CHANGES[change] in verdict.faults[0]
