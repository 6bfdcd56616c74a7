-- insert_run --
INSERT INTO runs (no, id, namespace_no, workflow_no, version, state, sequence, head_hash, cancel_requested, trigger,
  event_no, request_id, request_digest, created_at, started_at, ended_at, queue, priority, group_key, group_limit,
  run_at, parent_no, retry_of_no, rerun_of_no, trigger_no)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- update_run --
-- 0 rows: somebody else moved the run since it was read; the change was computed from a stale state.
UPDATE runs SET state = ?, sequence = ?, head_hash = ?, cancel_requested = ?, started_at = ?, ended_at = ?
WHERE no = ? AND sequence = ?

-- insert_history --
INSERT INTO history (run_no, sequence, at, kind, step, attempt, body, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- save_step --
INSERT INTO step_runs (run_no, key, state, attempt, started_at, ended_at, wake_at) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run_no, key) DO UPDATE SET state = excluded.state, attempt = excluded.attempt,
  ended_at = excluded.ended_at, wake_at = excluded.wake_at

-- insert_command --
INSERT INTO commands (run_no, sequence, epoch, namespace_no, queue, priority) VALUES (?, ?, ?, ?, ?, ?)

-- claim_command --
-- 0 rows: the command is gone or claimed already.
UPDATE commands SET epoch = ? WHERE run_no = ? AND sequence = ? AND epoch = 0

-- delete_command --
-- 0 rows: the command is gone already; its result belongs to an attempt that nobody waits for.
DELETE FROM commands WHERE run_no = ? AND sequence = ?

-- insert_timer --
INSERT INTO timers (run_no, sequence, due_at, set_at) VALUES (?, ?, ?, ?)

-- delete_timer --
DELETE FROM timers WHERE run_no = ? AND sequence = ?

-- run_by_id --
SELECT no, id, namespace_no, workflow_no, version, state, sequence, head_hash, cancel_requested, trigger, event_no,
  request_id, request_digest, created_at, started_at, ended_at, queue, priority, group_key, group_limit, run_at, parent_no,
  retry_of_no, rerun_of_no, (SELECT e.id FROM events e WHERE e.no = runs.event_no) FROM runs WHERE id = ?

-- run_by_no --
SELECT no, id, namespace_no, workflow_no, version, state, sequence, head_hash, cancel_requested, trigger, event_no,
  request_id, request_digest, created_at, started_at, ended_at, queue, priority, group_key, group_limit, run_at, parent_no,
  retry_of_no, rerun_of_no, (SELECT e.id FROM events e WHERE e.no = runs.event_no) FROM runs WHERE no = ?

-- run_by_request --
SELECT no, id, namespace_no, workflow_no, version, state, sequence, head_hash, cancel_requested, trigger, event_no,
  request_id, request_digest, created_at, started_at, ended_at, queue, priority, group_key, group_limit, run_at, parent_no,
  retry_of_no, rerun_of_no, (SELECT e.id FROM events e WHERE e.no = runs.event_no) FROM runs WHERE namespace_no = ? AND request_id = ?

-- history_after --
SELECT sequence, at, kind, step, attempt, body, hash FROM history WHERE run_no = ? AND sequence > ?
ORDER BY sequence LIMIT ?

-- steps_of_run --
SELECT key, state, attempt, started_at, ended_at, wake_at FROM step_runs WHERE run_no = ?

-- queued_commands --
SELECT run_no, sequence FROM commands
WHERE epoch = 0 AND namespace_no = ? AND queue = ? AND priority = ? AND (run_no, sequence) > (?, ?)
ORDER BY run_no, sequence LIMIT ?

-- queued_lanes --
SELECT namespace_no, queue, priority, count(*) FROM commands WHERE epoch = 0 GROUP BY namespace_no, queue, priority

-- claimed_commands --
SELECT run_no, sequence, epoch FROM commands WHERE epoch > 0 ORDER BY run_no, sequence

-- due_timers --
SELECT run_no, sequence, due_at, set_at IS NULL FROM timers WHERE (due_at, run_no, sequence) > (?, ?, ?) ORDER BY due_at, run_no, sequence LIMIT ?

-- shift_timers --
-- The clock was set forward: pauses that began before last as long as they would have. They count as begun at the new
-- time, so that none is moved twice.
UPDATE timers SET due_at = due_at + :by, set_at = :to WHERE set_at < :to

-- begin_timers_again --
-- The clock was set back while nobody looked: a pause that begins in the future begins now.
UPDATE timers SET due_at = due_at - (set_at - :now), set_at = :now WHERE set_at > :now

-- runs_of_event --
SELECT id FROM runs WHERE event_no = ? ORDER BY no LIMIT 1000

-- open_runs_of_workflow --
SELECT count(*) FROM (SELECT 1 FROM runs WHERE workflow_no = ? AND ended_at IS NULL LIMIT 1)

-- count_commands --
SELECT count(*) FROM commands WHERE epoch = 0

-- count_timers --
SELECT count(*) FROM timers

-- count_open_runs --
SELECT count(*) FROM runs WHERE ended_at IS NULL

-- open_runs --
-- Every run that holds a slot or waits for one: what the admission is rebuilt from.
SELECT no, namespace_no, priority, group_key, group_limit, parent_no, state, started_at, workflow_no, version FROM runs
WHERE ended_at IS NULL ORDER BY no

-- lane_of_command --
SELECT namespace_no, queue, priority FROM commands WHERE run_no = ? AND sequence = ? AND epoch = 0

-- insert_child --
INSERT INTO children (parent_no, sequence, run_id, workflow, version, cancelled) VALUES (?, ?, ?, ?, ?, 0)

-- cancel_child --
UPDATE children SET cancelled = 1 WHERE parent_no = ? AND sequence = ?

-- delete_child --
-- 0 rows: its end is known already.
DELETE FROM children WHERE parent_no = ? AND sequence = ?

-- all_children --
SELECT c.parent_no, c.sequence, c.run_id, c.workflow, c.version, c.cancelled, r.no, r.state, r.ended_at, r.cancel_requested
FROM children c LEFT JOIN runs r ON r.id = c.run_id ORDER BY c.parent_no, c.sequence

-- child_by_run --
SELECT parent_no, sequence FROM children WHERE run_id = ?

-- run_id_of --
SELECT id FROM runs WHERE no = ?

-- retry_of_run --
SELECT no, id FROM runs WHERE retry_of_no = ?

-- insert_dead_letter --
INSERT INTO dead_letters (run_no, namespace_no, workflow_no, state, step, code, error, attempts, created_at)
VALUES (?, ?, ?, 'OPEN', ?, ?, ?, ?, ?)

-- retry_dead_letter --
UPDATE dead_letters SET state = 'RETRIED', settled_at = ?, settled_by = ? WHERE run_no = ? AND state = 'OPEN'

-- insert_log --
INSERT INTO step_logs (no, run_no, step, attempt, at, stream, text) VALUES (?, ?, ?, ?, ?, ?, ?)

-- logs_after --
SELECT no, step, attempt, at, stream, text FROM step_logs WHERE run_no = ? AND no > ? ORDER BY no LIMIT ?

-- count_open_dead_letters --
SELECT count(*) FROM dead_letters WHERE state = 'OPEN'
