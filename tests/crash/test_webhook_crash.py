"""A webhook that was answered 2xx has its event and exactly one run, whatever happens to the daemon."""

from __future__ import annotations

import asyncio
import uuid

import aiohttp
import pytest
from harness import Daemon, github_headers, github_payload, seeded, wait_until_idle
from taskforge.v1 import (
    event_pb2,
    event_service_pb2,
    event_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    secret_service_pb2,
    secret_service_pb2_grpc,
)

KILLS = 8
CLIENTS = 16
SECRET = "It's a Secret to Everybody"

DEFINITION = """
name: on-release
on:
  release:
    webhook: {path: github, verify: {scheme: github, secret: GITHUB_WEBHOOK_SECRET}}
    if: event.headers["x-github-event"] == "release" && event.body.action == "published"
    input: {tag: "${{ event.body.release.tag_name }}"}
input: {type: object, required: [tag], properties: {tag: {type: string}}}
steps:
  - id: look
    transform: {tag: "${{ input.tag }}", repository: "${{ event.body.repository.full_name }}"}
  - id: nap
    sleep: 50ms
output: ${{ steps.look.output }}
"""


class Sender:
    """GitHub: sends deliveries, each again and again until it is answered 2xx."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._body = github_payload()
        self.over = False
        self.answers: dict[str, list[tuple[int, str, tuple[str, ...]]]] = {}
        """By delivery: status, event and runs of each 2xx."""

    async def run(self) -> None:
        """Send until `over`."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client())

    async def _client(self) -> None:
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            number = 0
            while not self.over:
                number += 1
                delivery = str(uuid.uuid4())
                await self._deliver(session, delivery)
                if number % 5 == 0:
                    await self._deliver(session, delivery)  # GitHub's "Redeliver"

    async def _deliver(self, session: aiohttp.ClientSession, delivery: str) -> None:
        headers = github_headers(SECRET, self._body, delivery=delivery)
        while True:
            try:
                async with session.post(
                    f"{self._daemon.http}/hooks/default/github", data=self._body, headers=headers
                ) as r:
                    answer = await r.json()
                    status = r.status
            except (aiohttp.ClientError, TimeoutError, OSError):
                await asyncio.sleep(0.02)  # it may have been stored all the same: the next one is its duplicate then
                continue
            if status == 503:
                await asyncio.sleep(0.02)
                continue
            assert status in {200, 202}, (status, answer)
            self.answers.setdefault(delivery, []).append((status, answer["event_id"], tuple(answer["run_ids"])))
            return


@pytest.mark.timeout(120)
async def test_an_acknowledged_webhook_has_one_run() -> None:
    chance = seeded("test_webhook_crash")
    daemon = Daemon()
    try:
        await asyncio.to_thread(daemon.start)
        secrets = daemon.stub(secret_service_pb2_grpc.SecretServiceStub)
        await secrets.SetSecret(secret_service_pb2.SetSecretRequest(name="GITHUB_WEBHOOK_SECRET", value=SECRET))
        await daemon.apply(DEFINITION)
        sender = Sender(daemon)
        sending = asyncio.create_task(sender.run())
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0.05, 0.6))
            await asyncio.to_thread(daemon.restart)
        sender.over = True
        await asyncio.wait_for(sending, 30)
        await _check(daemon, sender)
        assert await asyncio.to_thread(daemon.terminate) == 0
    finally:
        await daemon.aclose()


async def _check(daemon: Daemon, sender: Sender) -> None:
    runs_of: dict[str, tuple[str, ...]] = {}
    for delivery, answers in sender.answers.items():
        assert len({(event, runs) for _, event, runs in answers}) == 1, f"{delivery}: {answers}"
        assert [status for status, _, _ in answers][1:] == [200] * (len(answers) - 1), f"{delivery}: {answers}"
        _, event, runs = answers[0]
        assert len(runs) == 1, f"{delivery} has {len(runs)} runs"
        assert event not in runs_of, "two deliveries became one event"
        runs_of[event] = runs
    run_ids = {runs[0] for runs in runs_of.values()}
    assert len(run_ids) == len(runs_of), "two events share a run"

    ended = await wait_until_idle(daemon, run_ids, within_s=60)
    assert {run.state for run in ended.values()} == {run_pb2.Run.STATE_SUCCEEDED}
    stored = await daemon.list_runs()
    assert {run.id for run in stored} == run_ids, "a run that no acknowledged delivery started"
    for event, (run_id,) in runs_of.items():
        found = (await daemon.runs.GetRun(run_service_pb2.GetRunRequest(run_id=run_id), timeout=20)).run
        assert found.event_id == event, f"{run_id} belongs to {found.event_id}, but {event} was answered with it"
    accepted = await _accepted_events(daemon)
    assert accepted == runs_of.keys()
    duplicates = sum(status == 200 for answers in sender.answers.values() for status, _, _ in answers)
    print(f"{len(runs_of)} deliveries over {len(daemon.kills)} kills, {duplicates} answered as duplicates")


async def _accepted_events(daemon: Daemon) -> set[str]:
    events = daemon.stub(event_service_pb2_grpc.EventServiceStub)
    found: set[str] = set()
    token = ""
    while True:
        page = await events.ListEvents(
            event_service_pb2.ListEventsRequest(
                outcomes=[event_pb2.Event.OUTCOME_ACCEPTED], page_size=1000, page_token=token
            )
        )
        found |= {event.id for event in page.events}
        token = page.next_page_token
        if not token:
            return found
