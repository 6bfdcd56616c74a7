"""The rows that can be measured, in the order in which they are."""

from __future__ import annotations

from benchmarks import beside, growth, latency, process, throughput
from benchmarks.measure import Row

# The rows of `make bench`. Seconds are of one repeat on two slow cores.
ROWS = (
    Row("pure", throughput.pure, 14),
    Row("batch", throughput.batch, 12),
    Row("http", throughput.http, 13),
    Row("webhook", throughput.webhook, 14),
    Row("events", throughput.events, 10),
    Row("latency", latency.latency, 14),
    Row("chain", latency.chain, 20, repeats=2),
    Row("fan", latency.fan, 20, repeats=2),
    Row("fair", latency.fair, 20, repeats=1),
    Row("start", process.start, 15, repeats=1),
    Row("memory", process.memory, 70, repeats=1),
    Row("help", process.help_, 15, repeats=1),
    Row("disk", process.disk, 20, repeats=1),
    Row("cron", beside.schedules, 60, repeats=1),
    Row("watch", beside.watchers, 14, repeats=2),
    Row("prune", beside.prune, 50, repeats=1),
)

# The rows of `make bench-growth`.
GROWTH = (
    Row("stored", growth.stored, 500, repeats=1),
    Row("backlog", growth.backlog, 200, repeats=1),
    Row("fan-out", growth.fan_out, 45, repeats=1),
    Row("concurrency", growth.concurrency, 70, repeats=1),
)

BY_NAME = {row.name: row for row in (*ROWS, *GROWTH)}
