"""Triggers, schedules and events against the daemon: what people type, from end to end."""

from __future__ import annotations

import json
import time

import pytest
from cli.support import Ctl

SOURCE = """\
name: lively
input:
  type: object
  properties: {total: {type: integer, default: 1}}
on:
  paid:
    event: {type: "lively.*"}
    if: event.body.total > 100
  nightly:
    cron: {schedule: "0 3 * * *", timezone: Europe/Berlin}
steps:
  - id: one
    transform: {a: 1}
"""


@pytest.fixture(scope="module")
def lively(shared):
    ctl = Ctl(shared.home)
    ctl.apply(SOURCE)
    return ctl


def _settled(ctl, event_id: str) -> dict:
    for _ in range(100):
        event = ctl.json("event", "show", event_id)
        if event["outcome"] != "PENDING":
            return event
        time.sleep(0.1)
    raise AssertionError(event)


def test_triggers(lively):
    assert lively("trigger", "list", "--workflow", "lively", "-o", "name").split() == ["lively/nightly", "lively/paid"]
    assert lively("trigger", "list", "--workflow", "lively", "--kind", "event", "-o", "name") == "lively/paid\n"
    shown = lively.json("trigger", "show", "lively/nightly")
    assert (shown["kind"], shown["schedule"]["timezone"]) == ("CRON", "Europe/Berlin")
    assert "several" in lively.error("trigger", "show", "lively", code=2)
    lively.error("trigger", "show", "lively/nope", code=3)
    assert lively("trigger", "pause", "lively/paid", "--reason", "window") == "lively/paid  PAUSED\n"
    assert lively.json("trigger", "show", "lively/paid")["pause_reason"] == "window"
    assert lively("trigger", "resume", "lively/paid") == "lively/paid  active\n"


def test_fire(lively):
    fire = "trigger", "fire", "lively/paid", "--type", "lively.x"
    shown = lively.json(*fire, "--payload", '{"total": 101}', "--wait")
    assert [one["state"] for one in shown["runs"]] == ["SUCCEEDED"]
    assert lively("run", "list", "--event", shown["id"], "-o", "name").split() == shown["run_ids"]
    assert "event.body.total = 7" in lively(*fire, "--payload-file", "-", code=1, stdin='{"total": 7}')


def test_next(lively):
    expression = "trigger", "next", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin"
    told = lively(*expression, "--fold", "both", "--from", "2026-10-25T00:30Z", "-n", "2")
    assert "2026-10-25T00:30:00Z  first of two\n" in told  # --from is included
    assert "2026-10-25T01:30:00Z  second of two\n" in told
    assert "moved out of the gap" in lively(*expression, "--from", "2026-03-29T00:00Z", "-n", "1")
    assert "2026-03-30T00:30:00Z" in lively(*expression, "--gap", "skip", "--from", "2026-03-29T00:00Z", "-n", "1")
    assert len(lively.json("trigger", "next", "lively", "-n", "3")) == 3
    assert "hour" in lively.error("trigger", "next", "--cron", "0 25 * * *", code=2)


def test_schedule(lively):
    backfill = "schedule", "backfill", "lively", "--from", "-3d"
    assert "would fire" in lively(*backfill, "--dry-run")
    run_ids = lively(*backfill, "-o", "name").split()
    assert len(run_ids) in (2, 3)
    assert "there is nothing to start" in lively(*backfill)
    slots = lively.json("schedule", "slots", "lively/nightly", "--since", "-3d", "--outcome", "fired")
    assert sorted(run_id for one in slots for run_id in one["run_ids"]) == sorted(run_ids)
    told = lively("schedule", "explain", "lively", "--since", "-4d")
    assert told.startswith("lively/nightly  0 3 * * *")
    assert "\nnext\n" in told


def test_publish_why_and_replay(lively, tmp_path):
    publish = "event", "publish", "lively.x", "--data", '{"total": 7}', "--request-id", "cli-1", "-o", "name"
    event_id = lively(*publish).strip()
    assert lively(*publish).strip() == event_id
    assert _settled(lively, event_id)["outcome"] == "FILTERED"
    told = lively("event", "why", event_id)
    assert "lively/paid: this part of its `if` was false\n" in told
    assert "event.body.total = 7\n" in told
    listed = lively("event", "list", "--type", "lively.*", "--source", "internal", "--since", "-1h", "-o", "name")
    assert event_id in listed.split()
    (tmp_path / "body.json").write_text('{"total": 700}')
    (result,) = lively.json("event", "replay", event_id, "--edit", str(tmp_path / "body.json"))
    assert (result["outcome"], len(result["run_ids"])) == ("ACCEPTED", 1)
    assert lively.json("event", "show", result["replay_id"])["replay_of"] == event_id
    assert lively.json("event", "show", event_id)["replayed_by"] == [result["replay_id"]]
    several = lively.json("event", "replay", event_id, "evt_00000000000000000000000000", code=1)
    assert [bool(one["error"]) for one in several] == [False, True]
    lively.error("event", "replay", "evt_00000000000000000000000000", code=3)


def test_replay_all(lively):
    ids = [lively("event", "publish", "lively.y", "--data", '{"total": 1}', "-o", "name").strip() for _ in range(3)]
    assert {_settled(lively, one)["outcome"] for one in ids} == {"FILTERED"}
    everything = "event", "replay", "--all", "--type", "lively.y", "--outcome", "filtered"
    assert lively(*everything, "--dry-run", "-o", "name").split() == ids
    assert [one["event_id"] for one in lively.json(*everything)] == ids
    assert lively(*everything) == "no events fit\n"


def test_engine_events_are_left_out_until_asked_for(lively):
    run_id = lively("run", "start", "lively", "--wait", "-o", "name").strip()
    assert lively.json("run", "show", run_id)["state"] == "SUCCEEDED"
    assert "engine" not in {one["source"] for one in lively.json("event", "list", "--limit", "0")}
    for option in (["--source", "engine"], ["--type", "run.*"]):
        assert "run.succeeded" in {one["type"] for one in lively.json("event", "list", *option)}


def test_logs_of_a_step_that_is_not_there(lively):
    run_id = lively("run", "start", "lively", "--wait", "-o", "name").strip()
    assert "has no step 'nowhere'" in lively.error("run", "logs", run_id, "nowhere", code=3)
    assert lively("run", "logs", run_id, "one").startswith("no logs")
    assert json.loads(lively("run", "logs", run_id, "one", "-o", "json")) == []
