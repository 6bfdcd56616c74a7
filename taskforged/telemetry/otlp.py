"""Hands the spans of runs that have ended to an OpenTelemetry collector. Needs the extra `taskforge[otel]`.

It is a reader with a cursor. Every end of a run is an event of the engine, stored in the commit of that end; this reads
them in order, makes the spans from the history, sends them, and moves the cursor when the collector has taken them. So
a collector that is down costs nothing but delay, a restart loses nothing, and what is sent twice has the same ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import urlsplit

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from taskforged import __version__
from taskforged.clock import Clock
from taskforged.host.loop import Loop
from taskforged.meters import DoorMeters
from taskforged.store.changes import history_from_row
from taskforged.store.sql import QUERIES
from taskforged.store.store import Connection, Store
from taskforged.telemetry.spans import Span, spans_of

__all__ = ["TraceExport"]

_log = structlog.get_logger(__name__)

_CURSOR = "otel.cursor"
_RUNS = 20
"""Runs that are sent at once: each may have thousands of spans."""

_EVENTS = 10_000
"""Events that one query looks through, however few of them are ends of runs."""

_SPANS = 500
"""Spans in one request: collectors refuse large ones, and a refused one would be tried for ever."""

_SETTLED_US = 1_000_000
"""Numbers are given before the commit, so a lower one may be stored a moment later than a higher one."""

_PAUSE_S = 1.0
_PAUSE_S_MAX = 60.0
_EXPORT_S = 10.0


class TraceExport(Loop):
    """Sends spans for ever. Nothing waits for it."""

    def __init__(self, *, store: Store, clock: Clock, meters: DoorMeters, endpoint: str, service_name: str) -> None:
        """Create an export to an OTLP/HTTP endpoint; without a path it is that of the protocol, `/v1/traces`."""
        super().__init__("traces", self._send_for_ever)
        self._store = store
        self._clock = clock
        self._meters = meters
        url = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
        self._exporter = OTLPSpanExporter(endpoint=url, timeout=_EXPORT_S)
        self._resource = Resource.create({"service.name": service_name, "service.version": __version__})
        self._scope = InstrumentationScope("taskforged", __version__)
        self._is_down = False

    async def stop(self) -> None:
        """End; what was not sent is sent after the next start."""
        await asyncio.to_thread(self._exporter.shutdown)
        await super().stop()

    async def _send_for_ever(self) -> None:
        pause_s = _PAUSE_S
        while True:
            try:
                while await self._send_some():
                    pause_s = _PAUSE_S
                pause_s = _PAUSE_S if not self._is_down else min(_PAUSE_S_MAX, 2 * pause_s)
            except Exception as error:  # noqa: BLE001  task boundary: traces must not end anything
                _log.error("traces.failed", exc_info=error)
                pause_s = _PAUSE_S_MAX
            await self.sleep(pause_s)

    async def _send_some(self) -> bool:
        """Send what comes next; answers whether there may be more."""
        cursor = await self._store.value("meta_value", _CURSOR)
        end: int = await self._store.value("newest_event_before", self._clock.now() - _SETTLED_US)
        if cursor is None:  # what ended before traces were switched on is not told
            await self._move(end)
            return False
        begin = int(cursor)
        until = min(end, begin + _EVENTS)
        rows = await self._store.rows("ended_runs_after", begin, until, _RUNS)
        spans = [span for _, run_no in rows for span in await self._spans(run_no)]
        for first in range(0, len(spans), _SPANS):
            if not await self._export(spans[first : first + _SPANS]):
                return False
        if len(rows) == _RUNS:
            until = rows[-1][0]
        elif not rows and until == end:  # nothing of note so far: these few are looked at again
            return False
        await self._move(until)
        return until < end

    async def _spans(self, run_no: int) -> Sequence[Span]:
        def read(connection: Connection) -> Sequence[Span]:
            rows = connection.execute(QUERIES["history_after"], (run_no, 0, 1_000_000))
            return spans_of(history_from_row(row).event for row in rows)

        return await self._store.read(read)

    async def _export(self, spans: Sequence[Span]) -> bool:
        result = await asyncio.to_thread(self._hand_over, spans)
        if result is not SpanExportResult.SUCCESS:
            self._meters.export_failures += 1
            if not self._is_down:
                _log.warning("traces.not_exported", hint="the collector does not take them; this goes on trying")
            self._is_down = True
            return False
        self._is_down = False
        self._meters.spans_exported += len(spans)
        return True

    def _hand_over(self, spans: Sequence[Span]) -> SpanExportResult:
        return self._exporter.export([self._readable(span) for span in spans])

    def _readable(self, span: Span) -> ReadableSpan:
        trace_id = int(span.trace_id, 16)
        return ReadableSpan(
            name=span.name,
            context=_context(trace_id, span.span_id),
            parent=_context(trace_id, span.parent_id, is_remote=span.is_remote) if span.parent_id else None,
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(name, attributes, at * 1000) for name, at, attributes in span.events],
            links=[Link(_context(int(trace, 16), one)) for trace, one in span.links],
            kind=SpanKind.CLIENT if span.name.startswith("attempt ") else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=span.began * 1000,
            end_time=span.ended * 1000,
            instrumentation_scope=self._scope,
        )

    async def _move(self, cursor: int) -> None:
        await self._store.journal.execute(lambda c: c.execute(QUERIES["set_meta_value"], (_CURSOR, str(cursor))))


def _context(trace_id: int, span_id: str, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, int(span_id, 16), is_remote=is_remote, trace_flags=TraceFlags(TraceFlags.SAMPLED))
