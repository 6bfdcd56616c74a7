"""What people do with runs, against the daemon: approve, signal, pause, retry, explain, read logs."""

from __future__ import annotations

import json
import socket
import time

import pytest
from cli.support import Ctl

RELEASE = """\
name: release
steps:
  - id: items
    transform: {all: "${{ [1, 2, 3] }}"}
  - id: each
    for_each: ${{ steps.items.output.all }}
    transform: {n: "${{ item }}"}
  - id: gate
    wait: {approval: "Ship it?"}
  - id: go
    wait: {signal: go}
output: {by: "${{ steps.gate.output.payload }}", why: "${{ steps.go.output }}"}
"""
DYING = """\
name: dying
steps:
  - id: before
    transform: {a: 1}
  - id: call
    http: {url: "http://127.0.0.1:1/"}
    retry: {max_attempts: 2, delay: 1ms, jitter: none}
"""


@pytest.fixture(scope="module")
def live(shared) -> Ctl:
    made = Ctl(shared.home)
    made.apply(RELEASE)
    made.apply(DYING)
    made.apply(DYING.replace("name: dying", "name: held"))
    return made


def _waiting(ctl: Ctl, run_id: str, step: str) -> None:
    deadline = time.monotonic() + 20
    while step not in ctl("run", "steps", run_id, "--state", "WAITING", "-o", "name").split():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_release_is_approved_and_signalled(live):
    run_id = live("run", "start", "release", "--priority", "8", "-o", "name").strip()
    _waiting(live, run_id, "gate")
    shown = live("run", "show", run_id)
    for part in ("default, priority 8", "3/3 items", "for approval: Ship it?"):
        assert part in shown, part
    told = live("run", "explain", run_id)
    assert f"taskforgectl run approve {run_id} gate" in told
    assert live("run", "pause", run_id, "--reason", "window") == f"{run_id}  PAUSED\n"
    assert "paused by" in live("run", "show", run_id)
    live.error("run", "approve", run_id, "nope", code=6)
    live("run", "resume", run_id)
    assert "gate approved" in live("run", "approve", run_id, "--data", '"ada"', "--comment", "fine")
    assert "taken by step go" in live("run", "signal", run_id, "go", "--data", '{"n": 1}')
    run = live.json("run", "show", run_id)
    assert (run["state"], run["output"]["by"]) == ("SUCCEEDED", "ada")
    assert run["step_count"] == 7
    live.error("run", "approve", run_id, code=6)
    assert "approved" in live("run", "logs", run_id, "gate")
    assert live("run", "logs", run_id, "gate", "--follow") == live("run", "logs", run_id, "gate")


def test_a_rejected_release_fails(live):
    run_id = live("run", "start", "release", "-o", "name").strip()
    _waiting(live, run_id, "gate")
    live("run", "reject", run_id, "--comment", "not today")
    run = live.json("run", "show", run_id)
    assert run["state"] == "FAILED"
    again = live.json("run", "rerun", run_id, "--from", "gate")
    assert (again["rerun_of"], again["version"]) == (run_id, 1)
    _waiting(live, again["id"], "gate")
    assert "taken over" in live("run", "show", again["id"])
    live("run", "cancel", again["id"])


def test_what_dies_is_retried_or_discarded(live):
    run_id = live("run", "start", "dying", "--wait", "-o", "name", code=1).strip()
    assert live("dead", "list", "--workflow", "dying", "--step", "call", "-o", "name").split() == [run_id]
    assert "attempt 2" in live("run", "logs", run_id, "call")
    again = live.json("run", "retry", run_id, "--wait", code=1)
    assert (again["retry_of"], again["state"]) == (run_id, "DEAD")
    assert live.json("dead", "show", run_id)["state"] == "RETRIED"
    (dry,) = live.json("dead", "retry", "--all", "--workflow", "dying", "--dry-run")
    assert dry == {"run_id": again["id"], "new_run_id": "", "error": ""}
    assert "discarded" in live("dead", "discard", "--all", "--workflow", "dying", "--reason", "known")
    assert live.json("dead", "list", "--workflow", "dying") == []
    assert live.json("dead", "show", again["id"])["reason"] == "known"
    live.error("dead", "show", "run_00000000000000000000000000", code=3)


def test_later(live):
    run = live.json("run", "start", "release", "--at", "+1h")
    assert run["state"] == "SCHEDULED"
    assert "scheduled" in live("run", "explain", run["id"])
    live("run", "cancel", run["id"])


def test_a_paused_queue_holds_its_runs(live):
    live("queue", "set", "slow", "--running-steps-max", "1")
    live("queue", "pause", "slow")
    run_id = live("run", "start", "held", "--queue", "slow", "-o", "name").strip()
    deadline = time.monotonic() + 20
    while "taskforgectl queue resume slow" not in live("run", "explain", run_id):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert live.json("queue", "show", "slow")["waiting"] == 1
    live.error("queue", "delete", "slow", code=6)
    live("queue", "resume", "slow")
    live("run", "watch", run_id, code=1)
    live("queue", "delete", "slow")
    live.error("run", "start", "held", "--queue", "slow", code=2)
    live.error("queue", "delete", "default", code=6)


def test_a_namespace_is_made_and_unmade(live):
    live("namespace", "set", "ops", "--label", "team=a", "--weight", "2", "--running-runs-max", "4")
    live("namespace", "set", "ops", "--label", "tier=1", "--weight", "0.5")
    made = live.json("namespace", "show", "ops")
    assert (made["labels"], made["weight"], made["running_runs_max"]) == ({"team": "a", "tier": "1"}, 0.5, 4)
    live("namespace", "set", "ops", "--replace-labels")
    assert live.json("namespace", "show", "ops")["labels"] == {}
    assert {"default", "ops"} <= set(live("namespace", "list", "-o", "name").split())
    live("namespace", "delete", "ops")
    live.error("namespace", "show", "ops", code=3)


def test_graphs(live, tmp_path):
    assert "◷ gate  wait" in live("workflow", "graph", "release")
    path = tmp_path / "broken.yaml"
    path.write_text("name: x\nsteps: []\n")
    assert f"{path}:" in live.run("workflow", "graph", "-f", str(path), code=2).stderr
    path.write_text(DYING)
    live("workflow", "graph", "-f", str(path), "--out", str(tmp_path / "g.svg"))
    assert (tmp_path / "g.svg").read_text().startswith("<svg ")
    assert json.loads(live("workflow", "graph", "release", "--version", "1", "-o", "json"))["version"] == 1
    live.error("workflow", "graph", "nope", code=3)


def test_a_step_that_needs_a_decision_is_resolved_with_an_output(own):
    ctl = Ctl(own.home)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        ctl.apply(
            "name: once\nsteps:\n  - id: charge\n    effect: once\n    http: {method: POST, url:"
            f' "http://127.0.0.1:{silent.getsockname()[1]}/"}}\noutput: ${{{{ steps.charge.output }}}}\n'
        )
        run_id = ctl("run", "start", "once", "-o", "name").strip()
        with silent.accept()[0]:
            own.restart()
    told = ctl("run", "explain", run_id)
    assert "run resolve" in told
    assert "charge" in told
    assert "--as succeeded only" in ctl.error(
        "run", "resolve", run_id, "charge", "--as", "failed", "--output", "{}", code=2
    )
    ctl("run", "resolve", run_id, "charge", "--as", "succeeded", "--output", '{"receipt": 7}', "-o", "json")
    shown = json.loads(ctl("run", "show", run_id, "-o", "json"))
    assert (shown["state"], shown["output"]) == ("SUCCEEDED", {"receipt": 7})
