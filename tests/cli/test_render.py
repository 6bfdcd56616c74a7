"""What needs no process: conversions, cleaning, the board, the table of exit codes."""

from __future__ import annotations

import io
import json
import sys
import time

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from taskforge.v1 import event_pb2, run_pb2, workflow_pb2

from taskforgectl.errors import EXIT_OF_STATUS, Violation, exit_code
from taskforgectl.options import Settings
from taskforgectl.render.board import Board, describe_body
from taskforgectl.render.output import show_item
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_json, safe_line, safe_lines
from taskforgectl.render.tables import span
from taskforgectl.render.viewer import open_viewer

EVIL = "a\x1b[31mb\x07\u202ec\u2066d\x9be\rf"


def test_exit_codes_name_real_statuses():
    names = {one.name for one in grpc.StatusCode}
    assert names >= EXIT_OF_STATUS.keys()
    assert {name: exit_code(name) for name in names} == {
        "OK": 1,  # never asked for
        "CANCELLED": 1,
        "UNKNOWN": 1,
        "INVALID_ARGUMENT": 2,
        "DEADLINE_EXCEEDED": 5,
        "NOT_FOUND": 3,
        "ALREADY_EXISTS": 6,
        "PERMISSION_DENIED": 4,
        "RESOURCE_EXHAUSTED": 7,
        "FAILED_PRECONDITION": 6,
        "ABORTED": 6,
        "OUT_OF_RANGE": 1,
        "UNIMPLEMENTED": 1,
        "INTERNAL": 1,
        "UNAVAILABLE": 5,
        "DATA_LOSS": 1,
        "UNAUTHENTICATED": 4,
    }


def test_violations_read_like_a_compilers():
    assert Violation("steps[0]", "wrong", 3, 4).describe("f.yaml") == "f.yaml:3:4: steps[0]: wrong"
    assert Violation("", "wrong").describe("f.yaml") == "f.yaml: wrong"
    assert Violation("name", "wrong").describe() == "name: wrong"


def test_plain():
    run = run_pb2.Run(
        id="run_1",
        state=run_pb2.Run.STATE_SUCCEEDED,
        output_json='{"n": 9007199254740993}',
        sequence=2**53 + 1,
        create_time=Timestamp(seconds=1, nanos=500_000_000),
        steps=[run_pb2.StepRun(key="a", state=run_pb2.StepRun.STATE_DEAD)],
        error=run_pb2.Error(code="x", details_json='{"a": null}'),
    )
    found = plain(run)
    assert (found["state"], found["output"], found["input"]) == ("SUCCEEDED", {"n": 9007199254740993}, None)
    assert (found["sequence"], found["create_time"], found["end_time"]) == (2**53 + 1, "1970-01-01T00:00:01.500Z", None)
    assert found["steps"][0]["state"] == "DEAD"
    assert found["error"]["details"] == {"a": None}
    expected = {field.name.removesuffix("_json") for field in run.DESCRIPTOR.fields}
    assert found.keys() == expected


def test_plain_bytes_maps_and_enums_of_the_future():
    event = plain(event_pb2.Event(body=b"\xff\x00", headers={"b": "2", "a": "1"}))
    assert event["body"] == {"base64": "/wA="}
    assert list(event["headers"]) == ["a", "b"]
    assert event["outcome"] is None
    assert plain(event_pb2.Event(body="ä".encode()))["body"] == "ä"
    assert plain(run_pb2.Run(state=99))["state"] == 99
    assert plain(workflow_pb2.Workflow(labels={"a": "b"}))["labels"] == {"a": "b"}


def test_cleaning():
    assert safe_lines(EVIL) == "a[31mbcdef"
    assert safe_lines("a\tb\nc") == "a\tb\nc"
    assert safe_line(" a\n\tb ") == "a b"
    dumped = json.dumps({"k": EVIL + "\ud800"}, ensure_ascii=False, indent=2)
    cleaned = safe_json(dumped)
    assert cleaned.isascii()
    assert json.loads(cleaned) == {"k": EVIL + "\ud800"}


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_structured_output_is_exact_and_harmless(capsys, output):
    settings = Settings()
    settings.give("output", output)
    value = {"k": EVIL, "ä": "ö 🙂", "yes": "no", "n": 1}
    show_item(settings, value, key="k", people=lambda _: None)
    text = capsys.readouterr().out
    assert safe_lines(text) == text
    if output == "json":
        assert json.loads(text) == value
    else:
        import yaml

        assert yaml.safe_load(text) == value


def test_spans():
    assert [span(s) for s in (-1, 0.0123, 3.21, 61, 3725)] == ["0ms", "12ms", "3.2s", "1m01s", "1h02m"]


def test_bodies():
    assert describe_body("step.retrying", {"at": 1, "delay_s": 2.5}) == "again in 2.5s"
    assert describe_body("step.failed", {"error": {"code": "x", "message": "no\n" + EVIL}}) == "x: no a[31mbcdef"
    assert describe_body("run.created", {"input": {}}) == ""
    assert describe_body("step.branched", {"case": "else"}) == "case else"


def _event(sequence: int, kind: str, step: str = "", **fields) -> run_pb2.HistoryEvent:
    body = json.dumps(fields.pop("body", {}))
    time = Timestamp(seconds=1_000_000_000 + sequence)
    return run_pb2.HistoryEvent(sequence=sequence, kind=kind, step=step, create_time=time, body_json=body, **fields)


STEP = run_pb2.StepRun
EVENTS = [
    _event(1, "run.created", run_state=run_pb2.Run.STATE_PENDING),
    _event(2, "step.queued", "a", step_state=STEP.STATE_QUEUED, attempt=1),
    _event(3, "step.started", "a", step_state=STEP.STATE_RUNNING, attempt=1),
    _event(
        4,
        "step.attempt_failed",
        "a",
        step_state=STEP.STATE_RUNNING,
        attempt=1,
        body={"error": {"code": "http_status", "message": EVIL}},
    ),
    _event(5, "step.retrying", "a", step_state=STEP.STATE_RETRYING, attempt=1, body={"at": 1, "delay_s": 3}),
]
LATER = [
    _event(6, "step.started", "a", step_state=STEP.STATE_RUNNING, attempt=2),
    _event(7, "step.succeeded", "a", step_state=STEP.STATE_SUCCEEDED),
    _event(8, "step.branched", "b", step_state=STEP.STATE_RUNNING, body={"case": 1, "skipped": ["c"]}),
    _event(9, "run.failing", run_state=run_pb2.Run.STATE_RUNNING, body={"error": {"code": "e", "message": "m"}}),
    _event(10, "run.failed", run_state=run_pb2.Run.STATE_FAILED),
]


def _board() -> Board:
    steps = [run_pb2.StepRun(key="a", kind="http", max_attempts=3)]
    return Board(run_pb2.Run(id="run_1", workflow="w" + EVIL, version=2, steps=steps))


def test_the_board():
    board = _board()
    for event in EVENTS:
        board.apply(event)
    step = board.steps["a"]
    assert (step.kind, step.state, step.attempt, step.attempts_max) == ("http", "RETRYING", 1, 3)
    assert step.detail == "http_status: a[31mbcdef; again in 3.0s"
    for event in LATER:
        board.apply(event)
    assert (step.state, step.attempt, step.detail, step.ended - step.began) == ("SUCCEEDED", 2, "", 5.0)
    assert board.steps["c"].state == "SKIPPED"
    assert board.needs_names()
    board.learn(run_pb2.Run(steps=[run_pb2.StepRun(key=key, kind="switch") for key in "abc"]))
    assert not board.needs_names()
    assert (board.state, board.error, board.ended) == ("FAILED", "e: m", 1_000_000_010)


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_the_live_view_draws_and_cleans(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    for name, value in {"TERM": "xterm", "COLUMNS": "120", "LINES": "8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    many = [_event(11 + n, "step.queued", f"s{n}", step_state=STEP.STATE_QUEUED) for n in range(9)]
    run = run_pb2.Run(id="run_1")
    with open_viewer(Settings(), _board(), lambda: run) as viewer:
        viewer.show(EVENTS, run)
        viewer.interrupted("gone" + EVIL)
        deadline = time.monotonic() + 10
        while "reconnecting… (gonea[31mbcdef)" not in terminal.getvalue():  # another thread draws
            assert time.monotonic() < deadline
            time.sleep(0.01)
        viewer.show(LATER + many, run)
    drawn = terminal.getvalue()
    assert "\u202e" not in drawn
    assert "\x1b[31mb\x07" not in drawn
    for part in ("run_1", "FAILED", "✓", "s8", "e: m"):
        assert part in drawn, part


# --- fan-outs --------------------------------------------------------------------------------------------------------

FAN = 5000


def _fan_out_events(failing: frozenset[int] = frozenset()) -> list[run_pb2.HistoryEvent]:
    found = [
        _event(1, "step.expanded", "all", step_state=STEP.STATE_RUNNING, body={"items": [0] * FAN}),
    ]
    for n in range(FAN):
        for key in (f"all[{n}]", f"all[{n}].send"):
            found.append(_event(2, "step.started", key, step_state=STEP.STATE_RUNNING, attempt=1))
    for n in range(FAN - 20):
        bad = n in failing
        kind, state = ("step.failed", STEP.STATE_FAILED) if bad else ("step.succeeded", STEP.STATE_SUCCEEDED)
        body = {"error": {"code": "e", "message": f"item {n}"}} if bad else {}
        found.append(_event(3, kind, f"all[{n}].send", step_state=state, body=body))
        found.append(_event(3, kind, f"all[{n}]", step_state=state))
    return found


def test_a_large_fan_out_is_a_line_with_counts_and_few_lines_of_items():
    board = Board(run_pb2.Run(id="run_1"))
    asked = 0
    for number, event in enumerate(_fan_out_events(frozenset(range(0, 4000, 10)))):
        board.apply(event)
        if board.needs_names():
            asked += 1
            board.learn(run_pb2.Run(steps=[run_pb2.StepRun(key="all", kind="steps")]))
        if not number % 500:
            assert len(list(board.rows())) < 25
    assert asked <= 3  # not for each of thousands of items
    rows = list(board.rows())
    assert rows[0].detail == f"{FAN - 20}/{FAN} items, 400 failed"
    assert rows[1].key == "all[0].send"
    assert rows[1].detail == "e: item 0"
    assert "… 92+ more failed" in [row.key for row in rows]
    assert "… 32 more at work" in [row.key for row in rows]
    fan = board.fans["all"]
    assert (len(fan.open), len(fan.lost)) == (40, 100)
    board.apply(_event(9, "step.failed", "all", step_state=STEP.STATE_FAILED))
    assert not any("at work" in row.key for row in board.rows())


def test_a_fan_out_that_began_before_it_was_watched():
    steps = [run_pb2.StepRun(key="all", kind="http", item_count=9, items_ended=7, items_failed=1)]
    board = Board(run_pb2.Run(id="run_1", steps=steps))
    board.apply(_event(50, "step.started", "all[8]", step_state=STEP.STATE_RUNNING, attempt=1))
    rows = list(board.rows())
    assert [row.key for row in rows] == ["all", "all[8]"]
    assert (rows[0].kind, rows[0].detail) == ("http", "7/9 items, 1 failed")


def test_bodies_of_waits_and_decisions():
    assert describe_body("step.waiting", {"signal": "go"}) == "for signal go"
    assert describe_body("step.waiting", {"approval": "Ship" + EVIL}) == "for approval: Shipa[31mbcdef"
    assert describe_body("step.waiting", {"approval": ""}) == "for approval"
    assert describe_body("step.waiting", {"workflow": "w", "version": 2, "child": "run_2"}) == "for w v2 run_2"
    assert describe_body("step.waiting", {"signal": "", "at": 0, "approval": "x"}).startswith("for approval: x, until ")
    assert describe_body("step.approved", {"by": "ada", "comment": "fine"}) == "by ada: fine"
    assert describe_body("step.resolved", {"outcome": "retry", "by": "ada"}) == "retry by ada"
    assert describe_body("step.expanded", {"items": [1, 2]}) == "2 items"
    assert describe_body("step.expanded", {"items": {"$ref": 1}}) == "? items"
    assert describe_body("run.signalled", {"signal": "go", "by": "ada"}) == "go by ada"
    assert describe_body("run.paused", {"reason": "window"}) == "window"
    assert describe_body("step.yielded", {"at": 1}) == ""


def test_a_pause_is_told_until_it_is_over():
    board = _board()
    board.apply(_event(1, "run.paused", run_state=run_pb2.Run.STATE_PAUSED, body={"reason": "window"}))
    assert (board.state, board.error) == ("PAUSED", "window")
    board.apply(_event(2, "run.resumed", run_state=run_pb2.Run.STATE_RUNNING))
    assert (board.state, board.error) == ("RUNNING", "")
