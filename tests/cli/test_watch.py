from __future__ import annotations

import json
import signal
import time

import pytest
from cli.support import NAP, SHORT_NAPS, Ctl, finish


def _sequences(text: str) -> list[int]:
    return [json.loads(line)["sequence"] for line in text.splitlines()]


def test_lines_when_piped(ctl):
    told = ctl("run", "start", "short-naps", "--watch")
    lines = told.splitlines()
    run_id = lines[0].split()[0]
    assert "short-naps v1" in lines[0]
    assert "run.created" in lines[1]
    assert lines[-1].startswith(f"{run_id}  SUCCEEDED")
    assert len(lines) == 2 + len(ctl.json("run", "history", run_id))


def test_events_as_json_lines(ctl):
    run_id = ctl("run", "start", "short-naps", "-o", "name").strip()
    watched = [json.loads(line) for line in ctl("run", "watch", run_id, "-o", "json").splitlines()]
    assert watched == ctl.json("run", "history", run_id)


def test_after(ctl):
    run_id = ctl("run", "start", "hello", "--wait", "-o", "name").strip()
    last = ctl.json("run", "show", run_id)["sequence"]
    assert _sequences(ctl("run", "watch", run_id, "--after", "2", "-o", "json")) == list(range(3, last + 1))
    assert ctl("run", "watch", run_id, "--after", str(last), "-o", "json") == ""
    ctl.error("run", "watch", run_id, "--after", str(last + 1), code=2)


def test_a_run_that_fails_is_1(ctl):
    assert "FAILED" in ctl("run", "start", "fails", "--watch", code=1)


def _await_line(process, text: str) -> str:
    """Read to the line with the text; answers everything read."""
    read = ""
    for line in iter(process.stdout.readline, b""):
        read += line.decode()
        if text in read:
            return read
    raise AssertionError(f"no {text!r} in {read!r}: {process.stderr.read()}")


def test_ctrl_c_detaches_and_leaves_the_run_alone(ctl):
    for arguments in (["run", "start", "nap", "--watch"], ["run", "start", "nap", "--watch", "-o", "json"]):
        with ctl.popen(*arguments) as process:
            _await_line(process, "step.waiting")
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            stderr = finish(process, 10)[1]
        assert process.returncode == 130
        assert time.monotonic() - began < 3
        run_id = ctl("run", "list", "--workflow", "nap", "--limit", "1", "-o", "name").strip()
        assert stderr == f"detached; come back with: taskforgectl run watch {run_id}\n"
        assert ctl.json("run", "show", run_id)["state"] == "RUNNING"
        ctl("run", "cancel", run_id)


def test_ctrl_c_while_waiting(ctl):
    def newest() -> str:
        return ctl("run", "list", "--workflow", "nap", "--state", "RUNNING", "--limit", "1", "-o", "name").strip()

    before = newest()
    with ctl.popen("run", "start", "nap", "--wait") as process:
        _until(lambda: newest() not in ("", before))
        run_id = newest()
        process.send_signal(signal.SIGINT)
        stderr = finish(process, 10)[1]
    assert process.returncode == 130
    assert stderr == f"detached; come back with: taskforgectl run watch {run_id}\n"
    ctl("run", "cancel", run_id)


def _until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("output", ["json", "table"])
def test_a_watch_survives_kill_9_without_a_gap(own, output):
    """The daemon comes back on another port; `--address` unset, so the run file says which."""
    ctl = Ctl(own.home)
    ctl.apply(SHORT_NAPS)
    with ctl.popen("run", "start", "short-naps", "--watch", "-o", output) as process:
        seen = _await_line(process, "run.created")
        own.kill()
        own.start()
        out, err = finish(process, 60)
    assert process.returncode == 0, err
    assert "reconnecting" in err
    run_id = ctl("run", "list", "--limit", "1", "-o", "name").strip()
    history = ctl.json("run", "history", run_id)
    if output == "json":
        assert _sequences(seen + out) == [one["sequence"] for one in history]
    else:
        lines = [line.split("  ")[1] for line in (seen + out).splitlines() if line[:2] == "20"]
        assert lines == [str(one["sequence"]) for one in history]


def test_a_watch_over_tcp_finds_the_new_port(own):
    """Without the unix socket's constant address only the run file leads to the new daemon."""
    ctl = Ctl(own.home)
    ctl.apply(SHORT_NAPS)
    _prefer_tcp(own)
    with ctl.popen("run", "start", "short-naps", "--watch", "-o", "json") as process:
        seen = _await_line(process, "run.created")
        first = own.tcp
        own.kill()
        own.start()
        _prefer_tcp(own)
        out, err = finish(process, 60)
    assert process.returncode == 0, err
    assert own.tcp != first
    sequences = _sequences(seen + out)
    assert sequences == list(range(1, len(sequences) + 1))


def _prefer_tcp(daemon) -> None:
    path = daemon.home / "taskforged.json"
    content = json.loads(path.read_text())
    content["grpc"] = content["grpc"][::-1]
    path.with_suffix(".new").write_text(json.dumps(content))
    path.with_suffix(".new").replace(path)


def test_waiting_survives_kill_9(own):
    ctl = Ctl(own.home)
    ctl.apply(SHORT_NAPS)
    with ctl.popen("run", "start", "short-naps", "--wait", "-o", "json") as process:
        _until(lambda: ctl.json("run", "list"))
        own.kill()
        own.start()
        out, err = finish(process, 60)
    assert process.returncode == 0, err
    assert json.loads(out)["state"] == "SUCCEEDED"
    assert len(ctl.json("run", "list")) == 1


def test_a_daemon_that_stays_away_is_5(own):
    ctl = Ctl(own.home)
    ctl.apply(NAP)
    with ctl.popen("run", "start", "nap", "--watch", "--reconnect-timeout", "1") as process:
        _await_line(process, "step.waiting")
        own.kill()
        _, err = finish(process, 30)
    assert process.returncode == 5, err
    assert "hint: the run is safe on disk" in err


def test_a_daemon_that_stops_in_order_is_waited_for(own):
    ctl = Ctl(own.home)
    ctl.apply(SHORT_NAPS)
    with ctl.popen("run", "start", "short-naps", "--watch", "-o", "json") as process:
        seen = _await_line(process, "run.created")
        own.terminate()
        own.start()
        out, err = finish(process, 60)
    assert process.returncode == 0, err
    sequences = _sequences(seen + out)
    assert sequences == list(range(1, len(sequences) + 1))
