from __future__ import annotations

import urllib.request

HOOKED = """\
name: hooked
on:
  ping:
    webhook: {path: cli-ping, verify: {scheme: none}}
    if: event.body.go
steps:
  - id: one
    transform: {a: 1}
"""


def _post(ctl, body: bytes) -> None:
    url = f"{ctl.json('status')['http']}/hooks/default/cli-ping?a=b"
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status in (200, 202)


def test_events(ctl):
    assert ctl("event", "list", "--path", "cli-ping") == "no events fit\n"
    ctl.apply(HOOKED)
    assert "POST /hooks/default/cli-ping" in ctl("workflow", "list", "--limit", "0")
    _post(ctl, b'{"go": true}')
    _post(ctl, '{"go": false, "evil": "\u202e"}'.encode())
    filtered, accepted = ctl.json("event", "list", "--path", "cli-ping")
    assert (filtered["outcome"], accepted["outcome"]) == ("FILTERED", "ACCEPTED")
    assert ctl("event", "list", "--outcome", "filtered", "--path", "cli-ping", "-o", "name") == f"{filtered['id']}\n"
    event = ctl.json("event", "show", accepted["id"])
    assert event["body"] == '{"go": true}'
    assert event["query"] == {"a": "b"}
    assert event["headers"]["content-type"] == "application/json"
    assert (event["verdicts"][0]["workflow"], event["verdicts"][0]["matched"]) == ("hooked", True)
    assert ctl("run", "list", "--event", accepted["id"], "-o", "name").split() == event["run_ids"]
    shown = ctl("event", "show", filtered["id"])
    assert "hooked v1" in shown
    assert "evil" in shown
    assert "\u202e" not in shown
    ctl.error("event", "show", "evt_00000000000000000000000000", code=3)
    ctl.error("run", "list", "--event", "evt_00000000000000000000000000", code=3)
