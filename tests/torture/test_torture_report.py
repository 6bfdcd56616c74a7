"""What a torture tells: its report, that of several rounds, its progress."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from taskforgectl.commands.torture import _Line
from taskforgectl.torture.checks import Checked
from taskforgectl.torture.collect import Call, Slot, Trigger, World
from taskforgectl.torture.drive import Progress
from taskforgectl.torture.report import lines, merge, report_of

COUNTS = {
    "failure": "",
    "versions": {"taskforged": "1", "SQLite": "3"},
    "faults": {"kill": 2, "stop": 1},
    "boots": 4,
    "starts_s": [0.5, 2.5, 1.0],
    "acts": {"PauseRun": 3},
    "calls": 7,
    "moods": {"ok": 6, "500": 1},
    "repeats": 5,
    "lasted_s": 61.0,
    "driver_mib": 90,
}
WELL = Checked("ends", "every run has ended, once", 12, [])
BROKEN = Checked("effects", "effects repeat with a reason", 9, [f"run_{n}/x: why\x1b[31m" for n in range(60)])
UNTRIED = Checked("once", "effects are not repeated", 0, [])
LEFT_OUT = Checked("pauses", "nothing begins", 0, [], "the clock has jumped")


def report(*checked: Checked, **more: Any) -> dict[str, Any]:
    world = World()
    world.calls["r/x"] = [Call("r/x", "work", "x", 1, 1.0, 1.1), Call("r/x", "work", "x", 2, 2.0, 2.1)]
    slots = [Slot(0, 0, 1, "FIRED", "e", "", ["r"]), Slot(1, 9, 9, "MISSED", None, "", [])]
    world.triggers.append(Trigger("ticks/faithful", 0, None, slots))
    made = report_of(world, {**COUNTS, **more}, checked or [WELL])
    return {"seed": 7, "disk": "/mnt", **made}


def test_a_report_for_people():
    text = "\n".join(lines(report(WELL, BROKEN, LEFT_OUT, UNTRIED)))
    assert "seed      7, 61 s on /mnt" in text
    assert "faults    2 kill, 1 stop" in text
    assert "3 became ready, the slowest after 2.50 s" in text
    assert "7 calls with 1 keys, 1 repeats" in text
    assert "due times 9 MISSED, 1 FIRED" in text
    assert "ok               12  ends             every run has ended, once" in text
    assert "FAILED            9  effects" in text
    assert "! and 55 more" in text
    assert "left out          0  pauses" in text
    assert "not tried         0  once" in text
    assert "the clock has jumped" in text
    assert "\x1b" not in text


def test_a_report_for_programs():
    made = json.loads(json.dumps(report(WELL, BROKEN)))
    assert not made["ok"]
    assert made["due_times"] == {"FIRED": 1, "MISSED": 9}
    (_, effects) = made["checks"]
    assert effects["broken"] == 60
    assert len(effects["violations"]) == 50
    assert report(WELL)["ok"]


def test_a_torture_that_could_not_go_on_has_failed():
    made = report(WELL, failure="the daemon is not ready after 60 s")
    assert not made["ok"]
    assert list(lines(made))[-1] == "FAILED    the daemon is not ready after 60 s"


def test_rounds_together():
    whole = merge([report(WELL), report(BROKEN._replace(name="ends"), starts_s=[9.0], driver_mib=20)])
    assert not whole["ok"]
    assert whole["faults"] == {"kill": 4, "stop": 2}
    assert whole["starts"] == {"count": 8, "ready": 4, "slowest_s": 9.0}
    assert whole["lasted_s"] == 122.0
    assert whole["driver_mib"] == 90
    assert whole["versions"] == COUNTS["versions"]
    (ends,) = whole["checks"]
    assert (ends["looked_at"], ends["broken"], ends["ok"]) == (21, 60, False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(at_s: float, phase: str = "torture", **more: Any) -> Progress:
    fields = {"boots": 2, "faults": 3, "started": 1200, "open_runs": 4, "calls": 99, "broken": 0, **more}
    return Progress(phase, at_s, 600.0, **fields)


def test_progress_on_a_terminal_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    with _Line() as line:
        line.show(progress(1))
        line.show(progress(61.5))
    shown = sys.stderr.getvalue()
    assert "\n" not in shown
    assert "\r\x1b[K01:01/10:00 torture: 3 faults, 2 starts\r" in shown
    assert shown.endswith("\r\x1b[K")


@pytest.mark.parametrize("broken", [0, 2])
def test_progress_elsewhere_is_a_line_now_and_then(monkeypatch, broken):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with _Line() as line:
        for at_s in (0, 1, 2, 3, 11, 12):
            line.show(progress(at_s, broken=broken))
        line.show(progress(13, "settling"))
    shown = sys.stderr.getvalue().splitlines()
    assert [one[:5] for one in shown] == ["00:00", "00:11", "00:13"]
    assert shown[0].endswith("1,200 runs asked for, 4 open, 99 effects" + (", 2 BROKEN" if broken else ""))
