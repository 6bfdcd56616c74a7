"""Threat: a token that may cause something (role `trigger`) is used to read. And repeats of what was started before."""

from __future__ import annotations

import json

from switchboard import Event

PICKY = """
name: picky
on:
  go:
    event: {type: go}
    if: event.body.amount > 1000
steps:
  - {id: a, transform: 1}
"""
STRICT = """
name: strict
input: {type: object, required: [n], properties: {n: {type: integer}}}
steps:
  - {id: a, transform: 1}
"""


async def test_a_trigger_token_is_told_what_became_of_its_event_and_not_what_a_condition_saw(board):
    await board.apply(PICKY)
    trigger = (await board.token("TRIGGER")).secret
    operator = (await board.token("OPERATOR")).secret
    payload = json.dumps({"amount": 5})
    for bearer, reads in ((operator, True), (trigger, False)):
        fired = (await board("FireTrigger", workflow="picky", payload_json=payload, bearer=bearer)).event
        (verdict,) = fired.verdicts
        assert not verdict.matched
        assert bool(fired.body) is reads
        assert bool(verdict.values_json) is reads
        assert ("1000" in verdict.reason + verdict.clause) is reads
        published = (await board("PublishEvent", type="go", data_json=payload, bearer=bearer)).event
        assert bool(published.body) is reads
        assert published.id


async def test_a_trigger_token_still_learns_which_run_it_started(board):
    await board.apply(PICKY)
    trigger = (await board.token("TRIGGER")).secret
    payload = json.dumps({"amount": 5000})
    event = Event((await board("FireTrigger", workflow="picky", payload_json=payload, bearer=trigger)).event)
    (run_id,) = event.runs
    assert event.verdict["picky/go"].matched
    assert (await board.run(run_id)).workflow == "picky"


async def test_a_repeated_call_gets_its_run_whatever_has_changed_since(board):
    await board.apply(STRICT.replace("required: [n], ", ""))
    first = (await board("StartRun", workflow="strict", request_id="again")).run
    await board.apply(STRICT)  # the input would be refused now
    assert (await board("StartRun", workflow="strict", request_id="again")).run.id == first.id
    assert "n" in await board.refused("INVALID_ARGUMENT", "StartRun", workflow="strict", request_id="other")
    await board("DeleteWorkflow", name="strict")
    assert (await board("StartRun", workflow="strict", request_id="again")).run.id == first.id
    await board.refused("NOT_FOUND", "StartRun", workflow="strict", request_id="other")
