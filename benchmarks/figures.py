"""Every figure that a run may have: its name, its unit, its budget. The one table of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    Attributes:
        budget: of section 7 of the design; None where it sets none.
        higher: whether more is better.
        bare_is: what the bare cost beside it is.
        scale: the yardstick of `bare.REFERENCE` by which the budget is scaled for this machine; "" for none, since
            memory, disk and shares do not depend on speed.
    """

    key: str
    title: str
    unit: str
    budget: float | None = None
    higher: bool = True
    bare_is: str = ""
    scale: str = ""

    def met(self, value: float, budget: float) -> float:
        """How many times the budget is met: 1 or more is met."""
        return value / budget if self.higher else budget / value

    def scaled(self, speed: float | None) -> float | None:
        """The budget on a machine of which the yardstick is so many times as fast as the reference's."""
        if self.budget is None or not speed:
            return None
        return self.budget * speed if self.higher else self.budget / speed


_CALL = "bare gRPC calls"
_PYTHON = "Python with the same imports"
_ALONE = "the same alone"

_ALL = (
    # throughput
    Figure("pure", "3 pure steps, StartRun", "steps/s", 6750, bare_is="3 x bare gRPC calls", scale="grpc"),
    Figure("pure.wait", "3 pure steps, StartRun that waits", "steps/s", bare_is="3 x bare gRPC calls"),
    Figure("pure.ack", "StartRun, 64 in flight, p99", "ms", higher=False, bare_is="bare gRPC call, p99"),
    Figure("batch", "3 pure steps, BatchStartRuns", "steps/s", 15_000, bare_is="SQLite, 100 a commit", scale="grpc"),
    Figure("http", "3 HTTP steps, 64 in flight", "steps/s", 2700, bare_is="bare aiohttp requests", scale="http"),
    Figure("webhook", "webhook acks, 64 connections", "acks/s", 2200, bare_is="bare aiohttp server", scale="http"),
    Figure("webhook.p99", "webhook ack, p99", "ms", 60, False, "bare aiohttp server, p99", "http"),
    Figure("events", "published event to ended run", "events/s", bare_is=_CALL),
    # latency
    Figure("latency.p50", "one run of 3 pure steps, p50", "ms", 2.8, False, "one gRPC call + one commit", "grpc"),
    Figure("latency.p99", "one run of 3 pure steps, p99", "ms", 8, False, "one gRPC call + one commit", "grpc"),
    Figure("latency.http.p50", "one run of 3 HTTP steps, p50", "ms", higher=False),
    Figure("latency.http.p99", "one run of 3 HTTP steps, p99", "ms", higher=False),
    Figure("chain", "Windmill's 40 light steps, as transforms, p50", "s", 0.25, False, "one commit", "grpc"),
    Figure("chain.http", "Windmill's 40 light steps, as HTTP steps, p50", "s", 0.25, False, "80 commits", "grpc"),
    Figure(
        "chain.shell", "Windmill's 40 light steps, as programs, p50", "s", higher=False, bare_is="the programs alone"
    ),
    Figure("fan", "fan-out of 1,000 light steps", "s", 0.35, False, "SQLite, 100 a commit", "grpc"),
    Figure("fan.large", "fan-out of 10,000 light steps", "s", 3.5, False, "SQLite, 100 a commit", "grpc"),
    Figure("fan.http", "fan-out of 1,000 HTTP steps", "s", higher=False, bare_is="bare aiohttp requests"),
    Figure("fair", "run of 3 HTTP steps beside another tenant's flood, p50", "ms", higher=False, bare_is=_ALONE),
    # the process
    Figure("start", "start to ready", "s", 0.7, False, _PYTHON, "grpc"),
    Figure("memory", "resident memory, idle", "MB", 90, False, _PYTHON),
    Figure("memory.pending", "resident memory, 100,000 pending runs", "MB", 250, False, _PYTHON),
    Figure("memory.again", "the same after a restart", "MB", 250, False, _PYTHON),
    Figure("help", "taskforgectl --help", "ms", higher=False, bare_is="Python with click"),
    Figure("help.run", "taskforgectl run --help", "ms", higher=False, bare_is="Python with click"),
    Figure("completion", "completion of a workflow's name", "ms", higher=False, bare_is="Python with click"),
    Figure("disk.pure", "disk per run of 3 pure steps", "bytes", 2000, False),
    Figure("disk.http", "disk per run of 3 HTTP steps", "bytes", 2000, False),
    # beside other work
    Figure("cron.idle", "10,000 cron triggers, none due", "% of a core", higher=False),
    Figure("cron.due", "5,000 cron triggers due at one second, the last", "s", higher=False),
    Figure("watch.lag", "history event to its watcher, 20 runs/s, p50", "ms", higher=False),
    Figure("watch.lag.p99", "history event to its watcher, 20 runs/s, p99", "ms", higher=False),
    Figure("watch", "3 HTTP steps, each run watched", "steps/s", bare_is="the same without watchers"),
    Figure("prune.p99", "StartRun p99 beside pruning", "ms", higher=False, bare_is=_ALONE),
    Figure("prune", "runs pruned", "runs/s"),
    Figure("backup.p99", "StartRun p99 beside a backup", "ms", higher=False, bare_is=_ALONE),
    # with a million stored runs
    Figure("stored", "throughput with 1,000,000 stored runs, of an empty store's", "%", 90),
    Figure("stored.start", "start to ready, 1,000,000 stored runs", "s", 0.7, False, "an empty store", "grpc"),
    Figure("stored.memory", "resident memory, 1,000,000 stored runs", "MB", higher=False, bare_is="an empty store"),
    Figure("stored.list", "page of 50 runs of 1,000,000, p50", "ms", 20, False, "an empty store", "grpc"),
    Figure("stored.filtered", "page of 50 failed runs of 1,000,000, p50", "ms", 20, False, "an empty store", "grpc"),
    Figure("stored.deep", "page in the middle of 1,000,000 runs, p50", "ms", 20, False, "an empty store", "grpc"),
    Figure("stored.show", "one run of 1,000,000, p50", "ms", 20, False, "an empty store", "grpc"),
    Figure("stored.history", "history page, 1,000,000 runs, p50", "ms", 20, False, "an empty store", "grpc"),
)

FIGURES = {figure.key: figure for figure in _ALL}
