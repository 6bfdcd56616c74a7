"""Faults that were put into the product on purpose, each with the test that notices it.

`make mutants` puts each into a copy of the sources and demands that its test fails there. A fault that nobody notices
is a test that is missing. `old` stands in its file exactly once, which CI checks, so that the table stays true.
The engine has some more in `tests/engine/test_simulator.py`, which its simulator notices.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: what the product does then, after "a Taskforge that".
        file: of the sources.
        old: what stands there, once.
        new: what stands there instead.
        test: the test that has to fail, as pytest names it.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


WORLDS = "tests/simulation/test_host_simulation.py::test_worlds_keep_every_promise"
RUNNER = "tests/host/test_runner.py::"
SEMANTICS = "tests/host/test_runner_semantics.py::"
JOURNAL = "tests/store/test_journal.py::"
DATABASE = "tests/store/test_database.py::"
DISPATCHER = "tests/host/test_dispatcher.py::"
FAULTS = "tests/mutants/test_caught_here.py::"

_DURABILITY = [
    Mutant(
        "does not sync its commits",
        "taskforged/store/database.py",
        'connection.execute(f"PRAGMA synchronous = {synchronous}")',
        'connection.execute("PRAGMA synchronous = NORMAL")',
        f"{DATABASE}test_a_new_database_has_every_migration_and_the_pragmas_of_the_design",
    ),
    Mutant(
        "acknowledges a write before its commit",
        "taskforged/store/journal.py",
        "            self._waiting.append((write, future))\n",
        "            self._waiting.append((write, future))\n            future.set_result(None)  # type: ignore\n",
        f"{JOURNAL}test_a_failing_write_reaches_only_its_own_caller",
    ),
    Mutant(
        "keeps half of a write that was refused",
        "taskforged/store/journal.py",
        '        connection.execute("ROLLBACK TO one")\n',
        "        pass\n",
        f"{JOURNAL}test_a_stale_guard_undoes_its_own_write_and_nothing_else",
    ),
    Mutant(
        "goes on writing after an I/O error of the disk",
        "taskforged/store/journal.py",
        "        self._failure = error\n",
        "        pass\n",
        f"{JOURNAL}test_an_io_error_stops_the_journal_for_good",
    ),
    Mutant(
        "moves a run without looking where it stands",
        "taskforged/store/queries/runs.sql",
        "WHERE no = ? AND sequence = ?\n",
        "WHERE no = ? AND ? >= 0\n",
        f"{FAULTS}test_a_run_moves_only_from_where_it_was_read",
    ),
    Mutant(
        "claims a command that another boot has claimed",
        "taskforged/store/queries/runs.sql",
        "UPDATE commands SET epoch = ? WHERE run_no = ? AND sequence = ? AND epoch = 0",
        "UPDATE commands SET epoch = ? WHERE run_no = ? AND sequence = ?",
        f"{FAULTS}test_a_command_is_claimed_once",
    ),
    Mutant(
        "takes the result of an attempt that nobody waits for",
        "taskforged/store/changes.py",
        '"claim_command", "delete_command", "delete_timer"',
        '"claim_command", "delete_timer"',
        f"{FAULTS}test_a_result_that_nobody_waits_for_is_refused",
    ),
    Mutant(
        "does not link the hash chain",
        "taskforged/store/changes.py",
        'b"".join((previous, head.encode(), body))',
        'b"".join((head.encode(), body))',
        f"{FAULTS}test_the_hash_of_an_event_depends_on_all_before_it",
    ),
    Mutant(
        "lets history be rewritten",
        "taskforged/store/migrations/0001_spine.sql",
        "CREATE TRIGGER history_is_append_only BEFORE UPDATE ON history\n",
        "CREATE TRIGGER history_is_append_only BEFORE UPDATE OF run_no ON history\n",
        f"{DATABASE}test_what_is_history_cannot_be_rewritten",
    ),
    Mutant(
        "lets two daemons into one home",
        "taskforged/store/database.py",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        f"{DATABASE}test_a_home_is_locked_for_one",
    ),
    Mutant(
        "names a backup before it is on the disk",
        "taskforged/store/backup.py",
        "    fd = os.open(copy, os.O_RDWR | os.O_CLOEXEC)\n    try:\n        os.fsync(fd)\n",
        "    fd = os.open(copy, os.O_RDWR | os.O_CLOEXEC)\n    try:\n        pass\n",
        f"{FAULTS}test_a_backup_is_synced_then_named_then_its_folder_is_synced",
    ),
    Mutant(
        "does not sync the name of a backup",
        "taskforged/store/backup.py",
        "    sync_folder(name.parent)\n    return found",
        "    return found",
        f"{FAULTS}test_a_backup_is_synced_then_named_then_its_folder_is_synced",
    ),
    Mutant(
        "prunes runs that have not ended",
        "taskforged/store/migrations/0006_storage.sql",
        "WHERE r.ended_at IS NOT NULL\n",
        "WHERE r.no > 0\n",
        "tests/store/test_purge.py::test_what_is_needed_stays_whoever_asks",
    ),
]

_HOST = [
    Mutant(
        "does not decide about the attempts of an earlier boot",
        "taskforged/host/runner.py",
        "        for no, seq, old in lost:\n",
        "        for no, seq, old in lost[:0]:\n",
        f"{RUNNER}test_a_crash_repeats_only_what_was_cut_with_the_same_key",
    ),
    Mutant(
        "does not offer what was queued before the start",
        "taskforged/host/runner.py",
        '        lanes = await self._store.rows("queued_lanes")\n',
        "        lanes: list[Any] = []\n",
        WORLDS,
    ),
    Mutant(
        "keeps the slot of an attempt that was cancelled",
        "taskforged/host/runner.py",
        "elif isinstance(fact, (AttemptCompleted, AttemptFailed, AttemptLost, AttemptCancelled)):",
        "elif isinstance(fact, (AttemptCompleted, AttemptFailed, AttemptLost)):",
        f"{RUNNER}test_cancel_stops_what_runs_and_withdraws_what_waits",
    ),
    Mutant(
        "keeps the slot of a run that has ended",
        "taskforged/host/runner.py",
        "    def _announce_end(self, entry: Entry) -> None:\n        self.admission.free(entry.no)\n",
        "    def _announce_end(self, entry: Entry) -> None:\n",
        f"{SEMANTICS}test_runs_of_a_namespace_wait_for_its_limit_and_all_end",
    ),
    Mutant(
        "sends each attempt with another idempotency key",
        "taskforged/host/attempts.py",
        'idempotency_key=f"{run.run_id}/{key}",',
        'idempotency_key=f"{run.run_id}/{key}/{attempt}",',
        f"{RUNNER}test_a_crash_repeats_only_what_was_cut_with_the_same_key",
    ),
    Mutant(
        "forgets results that could not be written",
        "taskforged/host/runner.py",
        "        entry.mailbox.extendleft(reversed(kept))\n",
        "",
        f"{RUNNER}test_a_full_disk_keeps_the_result_until_there_is_space",
    ),
    Mutant(
        "tells no parent that its sub-workflow has ended",
        "taskforged/host/runner.py",
        'self._post(entry.parent_no, Letter(end_of(entry.run.parent["command"], entry.run)))',
        "pass",
        f"{SEMANTICS}test_a_sub_workflow_ends_before_its_parent_goes_on",
    ),
    Mutant(
        "does not look after sub-workflows that a crash has cut off",
        "taskforged/host/children.py",
        "        for row in rows:\n            await self._try(row)\n",
        "",
        f"{SEMANTICS}test_a_child_that_ended_while_the_parent_was_not_told_is_found_after_the_crash",
    ),
    Mutant(
        "executes one attempt more than the pool allows",
        "taskforged/host/dispatcher.py",
        "        if not self._open or len(self._slots) >= self.pool_size:\n            return False",
        "        if not self._open or len(self._slots) > self.pool_size:\n            return False",
        f"{RUNNER}test_never_more_attempts_than_slots_and_none_is_forgotten",
    ),
    Mutant(
        "turns priorities around",
        "taskforged/host/dispatcher.py",
        "queue.rank + line.priority",
        "queue.rank - line.priority + 9",
        f"{DISPATCHER}test_the_queue_s_priority_goes_before_the_run_s_and_both_before_age",
    ),
    Mutant(
        "starves what has no priority",
        "taskforged/host/dispatcher.py",
        "        is_guard = self._turn % GUARD_EVERY == GUARD_EVERY - 1\n",
        "        is_guard = False\n",
        f"{DISPATCHER}test_strict_priority_starves_nobody",
    ),
    Mutant(
        "ignores the weights of namespaces",
        "taskforged/host/limits.py",
        "self._now + 1.0 / weight",
        "self._now + 1.0",
        f"{DISPATCHER}test_shares_follow_the_weights",
    ),
    Mutant(
        "lets one run too many into a concurrency group",
        "taskforged/host/admission.py",
        "return not limit or self.running is None or len(self.running) < limit",
        "return not limit or self.running is None or len(self.running) <= limit",
        "tests/host/test_admission.py::test_a_group_of_several_slots_shows_one_run_after_the_other",
    ),
    Mutant(
        "drops the timer of a retry",
        "taskforged/store/changes.py",
        "change.timers.append((no, seq, at, None if by_wall else history[-1].at))",
        "pass",
        f"{RUNNER}test_retries_wait_for_their_time_and_survive_a_crash",
    ),
    Mutant(
        "writes no dead letter",
        "taskforged/store/changes.py",
        "    if state is RunState.DEAD:\n",
        "    if state is None:\n",
        f"{SEMANTICS}test_a_run_that_dies_leaves_a_dead_letter",
    ),
    Mutant(
        "publishes nothing when a run ends",
        "taskforged/store/changes.py",
        '    change.events.append(_publish(home, run, news, event_id, name, data, run.ended_at, "engine"))\n',
        "",
        f"{SEMANTICS}test_events_of_steps_and_of_the_end_are_stored_with_them",
    ),
]

_TIME = [
    Mutant(
        "fires a fixed time twice when the clocks go back",
        "taskforged/schedule/slots.py",
        '{"first": (Kind.SECOND,), "last"',
        '{"first": (), "last"',
        "tests/schedule/test_dst.py::test_named",
    ),
    Mutant(
        "catches up without an end",
        "taskforged/schedule/misfire.py",
        '1 if policy.misfire == "latest" else policy.cap)',
        '1 if policy.misfire == "latest" else 1_000_000)',
        "tests/schedule/test_misfire.py::test_misfired",
    ),
    Mutant(
        "settles a due time that somebody else has settled",
        "taskforged/store/queries/triggers.sql",
        "UPDATE triggers SET cursor = ?, next_at = ? WHERE no = ? AND cursor = ? AND",
        "UPDATE triggers SET cursor = ?, next_at = ? WHERE no = ? AND ? >= 0 AND",
        "tests/control/test_scheduler.py::test_two_writers_of_one_due_time_cannot_both_win",
    ),
]

_TRUST = [
    Mutant(
        "compares signatures with ==",
        "taskforged/control/signatures.py",
        "hmac.compare_digest(one, spelling)",
        "one == spelling",
        "tests/security/test_source_rules.py::test_secrets_are_not_compared_with_equals",
    ),
    Mutant(
        "takes deliveries of any age",
        "taskforged/control/signatures.py",
        "    if not timestamp or abs(now_s - int(timestamp)) <= demand.tolerance_s:\n",
        "    if not timestamp or int(timestamp) > 0:\n",
        "tests/control/test_signatures.py::test_the_tolerance_counts_in_both_directions",
    ),
    Mutant(
        "does not recognise a delivery again after a crash",
        "taskforged/store/events.py",
        "    if delivery_key is not None:\n",
        "    if delivery_key is None and row.no < 0:\n",
        "tests/control/test_inbox.py::test_a_hundred_copies_at_once_start_one_run",
    ),
    Mutant(
        "looks up a request id in all namespaces",
        "taskforged/store/queries/runs.sql",
        "WHERE namespace_no = ? AND request_id = ?\n",
        "WHERE ? > 0 AND request_id = ? ORDER BY no\n",
        f"{FAULTS}test_a_request_id_is_known_in_its_namespace_only",
    ),
    Mutant(
        "lets streams of a revoked token go on",
        "taskforged/control/access.py",
        "revoked_at=now)\n            self._end_streams(token_id)\n",
        "revoked_at=now)\n",
        "tests/rpc/test_tokens.py::test_streams_that_wait_end_with_their_token",
    ),
    Mutant(
        "takes tokens that have expired",
        "taskforged/control/access.py",
        " and record.revoked_at is None and (record.expires_at or 1 << 62) > self._clock.now()",
        " and record.revoked_at is None",
        "tests/rpc/test_guard.py::test_an_expired_token_stops_working",
    ),
    Mutant(
        "lets a trigger's token pause triggers",
        "taskforged/rpc/guard.py",
        'TriggerService/PauseTrigger": Role.OPERATOR',
        'TriggerService/PauseTrigger": Role.TRIGGER',
        "tests/rpc/test_guard.py::test_the_protos_say_the_same_as_the_table",
    ),
    Mutant(
        "leaves no audit row when a call is denied",
        "taskforged/rpc/guard.py",
        "self._audited(method, inner) if method in MUTATIONS else",
        "self._audited(method, inner) if method in MUTATIONS and not method else",
        "tests/rpc/test_audit.py::test_each_mutation_leaves_one_row_when_it_is_denied_and_when_it_fails",
    ),
    Mutant(
        "does not mask secrets in base64",
        "taskforged/steps/secrets.py",
        ', *_base64(part.encode("utf-8", "replace")))',
        ")",
        "tests/steps/test_step_secrets.py::test_no_form_of_a_secret_survives",
    ),
    Mutant(
        "opens a secret under another name",
        "taskforged/control/secrets.py",
        'return "/".join((str(namespace_no), name, str(version), *hosts)).encode()',
        'return "/".join((str(version), *hosts)).encode()',
        "tests/control/test_master_key.py::test_a_row_that_was_tampered_with_does_not_open",
    ),
    Mutant(
        "follows redirects that nobody allowed",
        "taskforged/steps/http.py",
        "_following(request, response) if rules.redirects_max > 0 else None",
        "_following(request, response)",
        "tests/steps/test_http_step.py::test_with_no_redirects_allowed_it_is_a_status",
    ),
    Mutant(
        "hands headers to another origin",
        "taskforged/steps/http_request.py",
        "return following if _origin(target) == _origin(request.url) else _at_other_origin(following)",
        "return following",
        "tests/steps/test_http_step.py::test_another_origin_gets_none_of_the_callers_headers",
    ),
    Mutant(
        "judges the first hop only",
        "taskforged/steps/outbound.py",
        "        if not verdict.is_allowed:\n            hop.denied",
        "        if not verdict.is_allowed and hop.is_tried:\n            hop.denied",
        "tests/steps/test_outbound.py::test_a_name_that_changes_its_mind_is_asked_once_for_each_connection",
    ),
    Mutant(
        "judges an address by its envelope",
        "taskforged/egress.py",
        "        inner = leaves(address)\n",
        "        inner = (address,)\n",
        "tests/security/test_egress_policy.py::test_no_envelope_leads_around_the_verdict_on_an_address",
    ),
    Mutant(
        "sends no idempotency key",
        "taskforged/steps/http_request.py",
        'own = {"Idempotency-Key": task.idempotency_key, ',
        "own = {",
        "tests/steps/test_http_step.py::test_a_plain_get",
    ),
    Mutant(
        "reads definitions of any depth",
        "taskforged/language/loader.py",
        "        if len(self._stack) >= DEPTH_MAX:\n",
        "        if len(self._stack) >= 100 * DEPTH_MAX:\n",
        "tests/language/test_loader.py",
    ),
]

_READERS = [
    Mutant(
        "repeats the last event to a watcher that comes back",
        "taskforged/store/queries/runs.sql",
        "FROM history WHERE run_no = ? AND sequence > ?\n",
        "FROM history WHERE run_no = ? AND sequence >= ?\n",
        "tests/rpc/test_runs.py::test_a_watch_resumes_where_it_was",
    ),
    Mutant(
        "leaves out an event when a watcher comes back",
        "taskforged/control/event_watch.py",
        "        found = await self._rows.feed(wanted, position, until, _PORTION)\n",
        "        found = await self._rows.feed(wanted, position + 1, until, _PORTION)\n",
        "tests/rpc/test_watch_events.py",
    ),
]

MUTANTS = [*_DURABILITY, *_HOST, *_TIME, *_TRUST, *_READERS]
