"""`trigger test` with the program that judges, and no daemon."""

from __future__ import annotations

import json
import urllib.request

import pytest

SOURCE = """\
name: tried
input:
  type: object
  properties: {tag: {type: string}}
on:
  github:
    webhook: {path: cli-tried, verify: {scheme: none}}
    if: event.headers["x-github-event"] == "release" && event.body.action == "published"
    input: {tag: "${{ event.body.tag }}"}
  paid:
    event: {type: "order.*"}
    if: event.body.total > 100
  nightly:
    cron: {schedule: "30 2 * * *", timezone: Europe/Berlin}
steps:
  - id: one
    transform: {a: 1}
"""
RELEASE = '{"action": "published", "tag": "v1"}'


@pytest.fixture
def tried(call, tmp_path):
    """Tries the definition; there is no daemon."""
    (tmp_path / "tried.yaml").write_text(SOURCE)

    def run(*arguments: str, code: int = 0):
        told = call("trigger", "test", str(tmp_path / "tried.yaml"), *arguments, code=code)
        assert not call.fake.requests
        return told

    return run


def test_a_webhook(tried):
    header = "--header", "X-GitHub-Event=release"
    shown = json.loads(tried("--trigger", "github", "--event", RELEASE, *header, "-o", "json").out)
    (verdict,) = shown["triggers"]
    assert (shown["workflow"], verdict["matched"], verdict["inputs"][0]["input"]) == ("tried", True, {"tag": "v1"})
    told = tried("--trigger", "github", "--event", RELEASE.replace("published", "created"), *header, code=1).out
    assert '    event.body.action == "published"\n      event.body.action = "created"\n' in told
    assert "there is no key" in tried("--trigger", "github", "--event", RELEASE, code=1).out


def test_an_event(tried):
    assert tried("--trigger", "paid", "--type", "order.x", "--event", '{"total": 101}', "-o", "name").out == "paid\n"
    assert "event.body.total = 7" in tried("--trigger", "paid", "--event", '{"total": 7}', code=1).out
    assert "order.*" in tried("--trigger", "paid", "--type", "run.failed", "--event", "{}", code=1).out


def test_due_times(tried):
    told = tried("--trigger", "nightly", "--at", "2026-03-28T12:00Z").out
    assert "Sun 2026-03-29 03:00:00 +02:00  2026-03-29T01:00:00Z  moved out of the gap\n" in told


def test_what_cannot_be_tried(tried, tmp_path):
    assert "it has github" in tried("--trigger", "nope", code=2).err
    (tmp_path / "tried.yaml").write_text(SOURCE.replace("event.body.total >", "event.boddy.total >>"))
    told = tried("--event", "{}", code=2).err
    assert f"{tmp_path}/tried.yaml:12:" in told
    assert "error: the definition is not valid" in told


def test_a_stored_delivery_is_tried_again(ctl, tmp_path):
    ctl.apply(SOURCE)
    url = f"{ctl.json('status')['http']}/hooks/default/cli-tried?a=b"
    headers = {"Content-Type": "application/json", "X-GitHub-Event": "release"}
    request = urllib.request.Request(url, data=RELEASE.replace("published", "created").encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        event_id = json.load(answer)["event_id"]
    (tmp_path / "event.json").write_text(ctl("event", "show", event_id, "-o", "json"))
    (tmp_path / "new.yaml").write_text(SOURCE.replace('== "published"', '== "created"'))
    (tmp_path / "old.yaml").write_text(SOURCE)
    stored = "--event", str(tmp_path / "event.json"), "--trigger", "github"
    assert ctl("trigger", "test", str(tmp_path / "new.yaml"), *stored, "-o", "name") == "github\n"
    assert "event.body.action" in ctl("trigger", "test", str(tmp_path / "old.yaml"), *stored, code=1)
