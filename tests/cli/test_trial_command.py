"""`trigger test`: what it hands to the program that judges, and what it makes of the answer."""

from __future__ import annotations

import io
import json
import sys

import pytest

from taskforgectl.commands.trigger import trial

EVIL = "a\x1b[31mb\u202e"
SOURCE = "name: deploy\n"

STAND_IN = """\
import json, os, pathlib, sys
here = pathlib.Path(sys.argv[1])
(here / "question.json").write_bytes(sys.stdin.buffer.read())
(here / "safe").write_text(os.environ["PYTHONSAFEPATH"])
sys.stdout.write((here / "answer").read_text())
print("first line", file=sys.stderr)
print("ModuleNotFoundError: no taskforged", file=sys.stderr)
"""

WHOLE = {
    "ok": True,
    "workflow": "deploy",
    "triggers": [
        {
            "trigger": "github",
            "kind": "webhook",
            "detail": "POST /hooks/default/github",
            "matched": False,
            "reason": f"its if was false {EVIL}",
            "clause": 'event.body.action == "published"',
            "values": {"event.body.action": "created"},
            "inputs": [],
            "due_times": [],
        },
        {
            "trigger": "paid",
            "kind": "event",
            "detail": "order.*",
            "matched": True,
            "reason": "",
            "clause": "",
            "values": {},
            "inputs": [
                {"namespace": "acme", "item": {"n": 1}, "input": {"total": 7}, "reason": ""},
                {"namespace": "bolt", "item": {"n": 2}, "input": None, "reason": "input.total: missing"},
            ],
            "due_times": [],
        },
        {
            "trigger": "nightly",
            "kind": "cron",
            "detail": "0 3 * * *",
            "matched": False,
            "reason": "it waits for due times",
            "clause": "",
            "values": {},
            "inputs": [],
            "due_times": [{"due_time": "2030-01-01T02:00:00Z", "local_time": "2030-01-01T03:00:00+01:00"}],
        },
    ],
}


@pytest.fixture
def judge(monkeypatch, tmp_path):
    """A stand-in for `taskforged.trial`; answers its folder."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "deploy.yaml").write_text(SOURCE)
    (tmp_path / "answer").write_text(json.dumps(WHOLE))
    monkeypatch.setattr(trial, "_PROGRAM", (sys.executable, str(tmp_path / "stand_in.py"), str(tmp_path)))
    return tmp_path


def _question(judge) -> dict:
    return json.loads((judge / "question.json").read_text())


def _try(call, judge, *arguments: str, code: int = 0):
    told = call("trigger", "test", str(judge / "deploy.yaml"), *arguments, code=code)
    assert not call.fake.requests  # no daemon is asked
    return told


def test_the_program_is_the_daemons_own():
    assert trial._PROGRAM == (sys.executable, "-m", "taskforged.trial")
    assert trial._LIMIT_S == 30


def test_what_is_asked(call, judge):
    arguments = [
        "--header",
        "X-GitHub-Event=release",
        "--type",
        "t",
        "--at",
        "2030-01-01T00:00Z",
        "--trigger",
        "github",
    ]
    _try(call, judge, "--event", '{"n": 1}', *arguments)
    assert _question(judge) == {
        "source": SOURCE,
        "event": {
            "body": {"n": 1},
            "body_is_text": False,
            "headers": {"x-github-event": "release"},
            "query": {},
            "type": "t",
            "path": "",
            "subject": "",
        },
        "at": "2030-01-01T00:00:00Z",
        "trigger": "github",
        "namespaces": [],
    }
    assert (judge / "safe").read_text() == "1"


def test_payloads(call, judge, monkeypatch):
    (judge / "p.json").write_text('{"ä": [1]}')
    _try(call, judge, "--event", str(judge / "p.json"))
    assert _question(judge)["event"]["body"] == {"ä": [1]}
    _try(call, judge, "--event", ' [1, "x"]')
    assert _question(judge)["event"]["body"] == [1, "x"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"42")))
    _try(call, judge, "--event", "-")
    assert _question(judge)["event"]["body"] == 42
    _try(call, judge)
    assert (_question(judge)["event"]["body"], _question(judge)["at"]) == (None, "")
    (judge / "p.txt").write_text("hello")
    _try(call, judge, "--event", str(judge / "p.txt"), "--header", "Content-Type=text/plain; charset=utf-8")
    assert (_question(judge)["event"]["body"], _question(judge)["event"]["body_is_text"]) == ("hello", True)
    _try(call, judge, "--event", "{}", "--header", "content-type=application/cloudevents+json")
    assert _question(judge)["event"]["body"] == {}


@pytest.mark.parametrize(
    ("stored", "body", "is_text"),
    [
        ({"body": '{"n": 1}', "encoding": "json"}, {"n": 1}, False),
        ({"body": '{"n": 1}', "encoding": "", "content_type": "application/json"}, {"n": 1}, False),
        ({"body": "a=1&b=&a=2", "encoding": "form"}, {"a": "2", "b": ""}, False),
        ({"body": "hello", "encoding": "text"}, "hello", True),
        ({"body": "hello", "encoding": "", "content_type": "text/plain"}, "hello", True),
        ({"body": {"base64": "/w=="}, "encoding": "base64"}, "/w==", True),
        ({"body": "hello", "encoding": "base64"}, "aGVsbG8=", True),
        ({"body": "", "encoding": "empty"}, None, False),
    ],
)
def test_a_stored_event_is_taken_apart(call, judge, stored, body, is_text):
    event = {
        "id": "evt_1",
        "headers": {"a": "b", "c": "d"},
        "query": {"q": "1"},
        "type": "",
        "path": "github",
        "subject": "s",
    } | stored
    (judge / "event.json").write_text(json.dumps(event))
    _try(call, judge, "--event", str(judge / "event.json"), "--header", "C=e", "--type", "x")
    assert _question(judge)["event"] == {
        "body": body,
        "body_is_text": is_text,
        "headers": {"a": "b", "c": "e"},
        "query": {"q": "1"},
        "type": "x",
        "path": "github",
        "subject": "s",
    }


def test_what_is_told(call, judge):
    told = _try(call, judge, "--event", "{}").out
    assert told.startswith("deploy: 1 of 3 triggers would start runs\n\nTRIGGER ")
    for part in (
        "POST /hooks/default/github",
        "its if was false a[31mb",
        'github: this part of its `if` was false\n    event.body.action == "published"\n',
        '\n      event.body.action = "created"\n',
        "paid: runs that it would start",
        "acme",
        '{"total": 7}',
        "input.total: missing",
        "nightly: next due",
        "Tue 2030-01-01 03:00:00 +01:00",
    ):
        assert part in told, part
    assert "\x1b" not in told
    assert json.loads(_try(call, judge, "--event", "{}", "-o", "json").out) == WHOLE
    assert _try(call, judge, "--event", "{}", "-o", "name").out == "paid\n"


def test_none_that_matches_is_1(call, judge):
    (judge / "answer").write_text(json.dumps({**WHOLE, "triggers": WHOLE["triggers"][:1]}))
    assert "0 of 1 triggers" in _try(call, judge, "--event", "{}", code=1).out
    (judge / "answer").write_text(json.dumps({**WHOLE, "triggers": []}))
    assert "0 of 0 triggers" in _try(call, judge, "--event", "{}", code=1).out


def test_an_invalid_definition_is_2(call, judge):
    violation = {"path": "on.github.if", "message": f"no such field {EVIL}", "line": 4, "column": 9}
    answer = {"ok": False, "message": "not valid", "violations": [violation]}
    (judge / "answer").write_text(json.dumps(answer))
    told = _try(call, judge, "--event", "{}", code=2)
    assert f"{judge / 'deploy.yaml'}:4:9: on.github.if: no such field a[31mb\n" in told.err
    assert "error: the definition is not valid" in told.err
    assert json.loads(_try(call, judge, "--event", "{}", "-o", "json", code=2).out) == answer
    (judge / "answer").write_text(json.dumps({"ok": False, "message": f"no trigger {EVIL}", "violations": []}))
    assert "error: no trigger a[31mb\n" in _try(call, judge, code=2).err


@pytest.mark.parametrize("answer", ["", "not json", "[]"])
def test_a_program_that_is_not_there_or_fails_is_1(call, judge, answer):
    (judge / "answer").write_text(answer)
    told = _try(call, judge, code=1).err
    assert "the trial failed (exit code 0): ModuleNotFoundError: no taskforged" in told
    assert "hint: " in told


def test_a_program_that_hangs_is_1(call, judge, monkeypatch):
    monkeypatch.setattr(trial, "_PROGRAM", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(trial, "_LIMIT_S", 0.3)
    assert "did not end within 0.3 s" in _try(call, judge, code=1).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--event", '{"a": 1,}'], "--event is not JSON: "),
        (["--event", '{"a": 1,}'], "line 1 column 9"),
        (["--event", "[1e999, NaN]"], "NaN is no number of JSON"),
        (["--event", "[1e999]"], "a value that JSON cannot carry"),
        (["--event", '["\\ud800"]'], "a value that JSON cannot carry"),
        (["--event", "/nonexistent"], "there is no file"),
        (
            ["--event", '{"id": "evt_1", "headers": {}, "body": "{", "encoding": "json"}'],
            "the body of evt_1 is not JSON",
        ),
        (["--header", "x"], "--header 'x' is not KEY=VALUE"),
        (["--at", "soon"], "--at 'soon' is not a time"),
    ],
)
def test_wrong_usage(call, judge, arguments, message):
    told = _try(call, judge, *arguments, code=2).err
    assert message in told
    assert not (judge / "question.json").exists()


def test_wrong_files(call, judge):
    assert "there is no file" in call("trigger", "test", "/nonexistent", code=2).err
    assert "cannot both come from stdin" in call("trigger", "test", "-", "--event", "-", code=2).err
