"""Every metric: its name, what it is, what tells its series apart. Code, documentation and tests read this.

Names follow Prometheus: a unit at the end, `_total` for counters. Labels never hold ids or what users send. Names of
namespaces, workflows and queues are bounded in number; those beyond it share the series `other`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["FAMILIES", "PREFIX", "Family"]

PREFIX = "taskforge_"


class Family(NamedTuple):
    """One metric. `name` is without prefix and without `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """Answer the name as a query writes it; of a histogram, without `_bucket`, `_sum` and `_count`."""
        return PREFIX + self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")


FAMILIES: tuple[Family, ...] = (
    Family("build", "info", "What runs here; always 1", ("version", "python", "sqlite", "schema")),
    Family("ready", "gauge", "1 while /readyz says yes"),
    # Runs.
    Family("runs_created", "counter", "Runs that were created", ("namespace", "workflow")),
    Family("runs_ended", "counter", "Runs that have ended", ("namespace", "workflow", "state")),
    Family("open_runs", "gauge", "Runs that have not ended: running or paused, pending, scheduled", ("state",)),
    Family("run_duration_seconds", "histogram", "From the start of a run to its end", ("namespace", "queue")),
    Family("stuck_runs", "gauge", "Open runs that nothing will move, by reason", ("reason",)),
    Family("overdue_items", "gauge", "Timers, commands and events whose time is long over", ("kind",)),
    Family("dead_letters_open", "gauge", "Dead letters that nobody has retried or discarded"),
    # Steps.
    Family("queued_steps", "gauge", "Steps that wait for a slot", ("namespace", "queue")),
    Family("running_steps", "gauge", "Steps that have a slot", ("namespace", "queue")),
    Family("step_slots", "gauge", "Steps that may run at once"),
    Family("step_queue_wait_seconds", "histogram", "Wait of a step for its first slot", ("namespace", "queue")),
    Family("step_attempts", "counter", "Attempts that have ended", ("kind", "outcome")),
    Family("step_attempt_duration_seconds", "histogram", "Attempts at steps", ("kind",)),
    Family("step_retries", "counter", "Failed attempts that are to be repeated", ("kind",)),
    Family("timers_pending", "gauge", "Timers that have not fired"),
    # Triggers.
    Family("webhook_deliveries", "counter", "Webhooks on known paths", ("outcome",)),
    Family("webhook_ack_duration_seconds", "histogram", "From the last byte of a delivery to its commit"),
    Family("events_pending", "gauge", "Events whose triggers have not been asked"),
    Family("schedules_active", "gauge", "Schedules with a next due time"),
    Family("schedule_lateness_seconds", "histogram", "How late due times fired"),
    # Doors.
    Family("http_requests", "counter", "Requests to the HTTP listener", ("route", "code")),
    Family("grpc_requests", "counter", "Calls that have ended", ("method", "code")),
    Family("grpc_request_duration_seconds", "histogram", "Unary calls", ("method",)),
    Family("spans_exported", "counter", "Spans that the collector of traces has taken"),
    Family("span_export_failures", "counter", "Times that the collector of traces took nothing"),
    Family("watchers", "gauge", "Streams that watch a run"),
    # The journal and the database.
    Family("commits", "counter", "Transactions of the journal"),
    Family("commit_failures", "counter", "Transactions that could not be written"),
    Family("commit_duration_seconds", "histogram", "Transactions of the journal, fsync included"),
    Family("commit_batch_writes", "histogram", "Writes in one transaction"),
    Family("journal_waiting_writes", "gauge", "Writes that wait for the next transaction"),
    Family("checkpoints", "counter", "Times that the log was moved into the database file", ("outcome",)),
    Family("checkpoint_duration_seconds", "histogram", "Moving the log; commits wait meanwhile"),
    Family("database_size_bytes", "gauge", "Database file"),
    Family("database_free_bytes", "gauge", "Pages of the database file that hold nothing"),
    Family("wal_size_bytes", "gauge", "Write-ahead log"),
    Family("disk_free_bytes", "gauge", "Space left on the disk of the home"),
    Family("pruned", "counter", "What retention has deleted since the start", ("kind",)),
    Family("backups", "counter", "Backups that this daemon has tried to make", ("outcome",)),
    Family("last_backup_timestamp_seconds", "gauge", "When the newest backup was made; 0: there is none"),
    # The process.
    Family("event_loop_lag_seconds", "histogram", "How late the event loop was, ten times a second"),
    Family("event_loop_stalls", "counter", "Times that the event loop was blocked for longer than [log] stall"),
)
