from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def test_wait_prints_the_finished_run_as_one_object(ctl):
    run = ctl.json("run", "start", "hello", "--input", "name=Ada", "--wait")
    assert run["id"].startswith("run_")
    assert (run["state"], run["workflow"], run["version"]) == ("SUCCEEDED", "hello", 1)
    assert run["output"] == {"text": "Hello, Ada!"}
    assert run["input"] == {"name": "Ada"}
    assert isinstance(run["sequence"], int)
    assert RFC3339.fullmatch(run["create_time"])
    assert RFC3339.fullmatch(run["end_time"])
    (step,) = run["steps"]
    assert (step["key"], step["kind"], step["state"]) == ("greet", "transform", "SUCCEEDED")
    assert not [key for key in run if key.endswith("_json")]


def test_wait_for_what_does_not_succeed_is_1(ctl):
    run = ctl.json("run", "start", "fails", "--wait", code=1)
    assert run["state"] == "FAILED"
    assert run["output"] is None
    assert "nothing works" in run["error"]["message"]
    shown = ctl("run", "start", "fails", "--wait", code=1)
    assert "FAILED" in shown
    assert "nothing works" in shown


def test_wait_for_what_takes_its_time(ctl):
    assert ctl.json("run", "start", "short-naps", "--wait")["state"] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--input", "name=Ada", "--input", "count=3"], {"name": "Ada", "count": 3}),
        (["--input", 'tags=["a","b"]'], {"name": "world", "tags": ["a", "b"]}),
        (["--input", 'name="3"'], {"name": "3"}),
        (["--input", "name=NaN"], {"name": "NaN"}),
        (["--input", "name=1e999"], {"name": "1e999"}),
        (["--input", "name=a=b"], {"name": "a=b"}),
        (["--input-json", '{"count": 9007199254740993}'], {"name": "world", "count": 9007199254740993}),
        (["--input-json", '{"count": 1, "name": "x"}', "--input", "name=Ada"], {"name": "Ada", "count": 1}),
    ],
)
def test_input(ctl, arguments, expected):
    run_id = ctl("run", "start", "hello", *arguments, "-o", "name").strip()
    assert ctl.json("run", "show", run_id)["input"] == expected


def test_input_from_a_file_and_from_stdin(ctl, tmp_path):
    (tmp_path / "in.json").write_text('{"name": "file"}')
    run = ctl.json("run", "start", "hello", "--input-file", str(tmp_path / "in.json"), "--wait")
    assert run["output"]["text"] == "Hello, file!"
    run = ctl.json("run", "start", "hello", "--input-file", "-", "--wait", stdin='{"name": "stdin"}')
    assert run["output"]["text"] == "Hello, stdin!"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--input", "name"],
        ["--input", "=3"],
        ["--input-json", "{"],
        ["--input-json", "[1]", "--input", "a=1"],
        ["--input-json", "[1]"],
        ["--input-json", "{}", "--input-file", "x"],
        ["--input-file", "/nonexistent"],
        ["--input", "name="],
        ["--input", "count=three"],
        ["--input", "unknown=1"],
        ["--wait", "--watch"],
    ],
)
def test_wrong_input_is_2_and_starts_nothing(ctl, arguments):
    before = ctl("run", "list", "--workflow", "hello", "--limit", "1", "-o", "name")
    ctl.error("run", "start", "hello", *arguments, code=2)
    assert ctl("run", "list", "--workflow", "hello", "--limit", "1", "-o", "name") == before


def test_request_id_makes_the_start_idempotent(ctl):
    first = ctl("run", "start", "hello", "--request-id", "cli-1", "-o", "name")
    assert ctl("run", "start", "hello", "--request-id", "cli-1", "-o", "name") == first
    assert ctl.json("run", "start", "hello", "--request-id", "cli-1", "--wait")["id"] == first.strip()
    told = ctl.error("run", "start", "hello", "--request-id", "cli-1", "--input", "name=other", code=6)
    assert first.strip() in told


def test_list_follows_pages_and_filters(ctl):
    ids = [ctl("run", "start", "hello", "--correlation-id", f"c{n}", "-o", "name").strip() for n in range(3)]
    listed = ctl.json("run", "list", "--workflow", "hello", "--limit", "2")
    assert [one["id"] for one in listed] == [ids[2], ids[1]]
    assert isinstance(ctl.json("run", "list", "--limit", "1"), list)
    assert set(ids) <= set(ctl("run", "list", "--limit", "0", "-o", "name").split())
    assert {one["state"] for one in ctl.json("run", "list", "--state", "succeeded")} == {"SUCCEEDED"}
    assert ctl("run", "list", "--workflow", "hello", "--state", "DEAD") == "no runs fit\n"
    assert ctl.json("run", "list", "--workflow", "hello", "--state", "DEAD") == []
    assert ctl.json("run", "show", ids[0])["correlation_id"] == "c0"
    ctl.error("run", "list", "--state", "BOGUS", code=2)
    ctl.error("run", "list", "--workflow", "bogus", code=3)


def test_history_is_whole_and_in_order(ctl):
    run_id = ctl("run", "start", "short-naps", "-o", "name", "--wait").strip()
    events = ctl.json("run", "history", run_id, "--limit", "0")
    assert [one["sequence"] for one in events] == list(range(1, len(events) + 1))
    assert events[0]["kind"] == "run.created"
    assert events[0]["body"]["workflow"] == "short-naps"
    assert events[-1]["run_state"] == "SUCCEEDED"
    assert events[0]["step_state"] is None
    assert [one["sequence"] for one in ctl.json("run", "history", run_id, "--limit", "3")] == [1, 2, 3]
    assert "run.succeeded" in ctl("run", "history", run_id)


def test_verify(ctl):
    run_id = ctl("run", "start", "hello", "-o", "name", "--wait").strip()
    verdict = ctl.json("run", "verify", run_id)
    assert verdict["intact"] is True
    assert verdict["faults"] == []
    assert ctl("run", "verify", run_id).startswith("intact: ")


def test_cancel(ctl):
    run_id = ctl("run", "start", "nap", "-o", "name").strip()
    run = ctl.json("run", "cancel", run_id, "--reason", "enough")
    assert (run["state"], run["cancel_requested"]) == ("CANCELLED", True)
    assert ctl("run", "cancel", run_id) == f"{run_id}  CANCELLED\n"
    assert "enough" in ctl("run", "history", run_id)
    ctl("run", "watch", run_id, code=1)
    done = ctl("run", "start", "hello", "-o", "name", "--wait").strip()
    ctl.error("run", "cancel", done, code=6)


@pytest.mark.parametrize("verb", ["show", "watch", "history", "cancel", "verify"])
def test_what_is_not_there_is_3(ctl, verb):
    ctl.error("run", verb, "run_00000000000000000000000000", code=3)


def test_global_options_before_the_noun_and_after_the_verb(ctl):
    for arguments in (
        ["-o", "json", "run", "list"],
        ["run", "list", "-o", "json"],
        ["-o", "name", "run", "list", "-o", "json"],
    ):
        assert isinstance(json.loads(ctl(*arguments)), list)
    elsewhere = str(ctl.home.parent / "elsewhere")
    ctl("--home", str(ctl.home), "run", "list", TASKFORGE_HOME=elsewhere)
    ctl("run", "list", "--home", str(ctl.home), TASKFORGE_HOME=elsewhere)
    ctl.error("run", "list", code=5, TASKFORGE_HOME=elsewhere)
    ctl.error("-n", "bogus", "run", "list", code=3)


def test_tables_are_plain_when_piped(ctl):
    ctl("run", "start", "hello", "--wait")
    table = ctl("run", "list", "--limit", "3")
    assert "\x1b" not in table
    assert table.startswith("RUN ")
    assert table.splitlines()[1].startswith("run_")


def test_a_reader_that_has_seen_enough_ends_it_like_sigpipe(ctl):
    run_id = ctl("run", "start", "hello", "--wait", "-o", "name").strip()
    with ctl.popen("run", "history", run_id, "-o", "json") as process:
        process.stdout.close()
        assert process.wait(30) == 141
        assert process.stderr.read() == b""


def test_bytes_that_are_no_text_are_2(ctl):
    for arguments in ([b"run", b"show", b"\xff"], [b"run", b"start", b"hello", b"--input", b"name=\xff"]):
        done = subprocess.run(
            [*map(os.fsencode, ctl.command()), *arguments],
            env=ctl.environment(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(b"error: an argument is not UTF-8 text")
    with ctl.popen("workflow", "apply", "-f", "/dev/stdin") as process:
        process.communicate(timeout=30)
    assert process.returncode == 2
