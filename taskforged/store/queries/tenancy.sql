-- all_namespaces --
-- A deleted namespace is called `<name>~<no>`, which nobody can ask for.
SELECT no, name, created_at, labels, weight, running_steps_max, running_runs_max, pending_runs_max, requests_per_s
FROM namespaces WHERE instr(name, '~') = 0

-- save_namespace --
INSERT INTO namespaces
  (no, name, created_at, labels, weight, running_steps_max, running_runs_max, pending_runs_max, requests_per_s)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (no) DO UPDATE SET labels = excluded.labels, weight = excluded.weight,
  running_steps_max = excluded.running_steps_max, running_runs_max = excluded.running_runs_max,
  pending_runs_max = excluded.pending_runs_max, requests_per_s = excluded.requests_per_s

-- namespace_content --
-- What keeps a namespace from being deleted. Counted to 1,000: whether there is any matters, and a million would take
-- long. Tokens that are revoked or expired, and deliveries that had no effect, keep nothing.
SELECT
  (SELECT count(*) FROM (SELECT 1 FROM workflows WHERE namespace_no = :no AND deleted_at IS NULL LIMIT 1000)),
  (SELECT count(*) FROM (SELECT 1 FROM runs WHERE namespace_no = :no LIMIT 1000)),
  (SELECT count(*) FROM (SELECT 1 FROM events
    WHERE namespace_no = :no AND outcome IN ('ACCEPTED', 'FILTERED') LIMIT 1000)),
  (SELECT count(*) FROM (SELECT 1 FROM tokens
    WHERE namespace_no = :no AND revoked_at IS NULL AND coalesce(expires_at, :now + 1) > :now LIMIT 1000)),
  (SELECT count(*) FROM (SELECT 1 FROM secrets WHERE namespace_no = :no LIMIT 1000)),
  (SELECT count(*) FROM (SELECT 1 FROM queues WHERE namespace_no = :no LIMIT 1000))

-- delete_namespace --
-- The row stays under another name: revoked tokens and the versions of deleted workflows refer to it for ever.
UPDATE namespaces SET name = ? WHERE no = ? AND name = ?

-- all_queues --
SELECT namespace_no, name, priority, running_steps_max, paused, created_at, updated_at FROM queues

-- save_queue --
INSERT INTO queues (namespace_no, name, priority, running_steps_max, paused, created_at, updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (namespace_no, name) DO UPDATE SET priority = excluded.priority,
  running_steps_max = excluded.running_steps_max, paused = excluded.paused, updated_at = excluded.updated_at

-- queue_content --
-- What keeps a queue from being deleted, counted to 1,000: steps that wait or are executed, and open runs.
SELECT
  (SELECT count(*) FROM (SELECT 1 FROM commands
    WHERE epoch = 0 AND namespace_no = :no AND queue = :queue LIMIT 1000)),
  (SELECT count(*) FROM (SELECT 1 FROM commands
    WHERE epoch > 0 AND namespace_no = :no AND queue = :queue LIMIT 1000)),
  (SELECT count(*) FROM (SELECT 1 FROM runs
    WHERE ended_at IS NULL AND namespace_no = :no AND queue = :queue LIMIT 1000))

-- delete_queue --
-- 0 rows: it is gone already.
DELETE FROM queues WHERE namespace_no = ? AND name = ?

-- workflow_was_known --
-- By that name there is, or was, a workflow.
SELECT 1 FROM workflows WHERE namespace_no = ? AND name = ? LIMIT 1

-- dead_letter_by_run --
SELECT d.run_no, r.id, d.namespace_no, w.name, r.version, d.state, d.error, d.attempts, d.created_at, d.settled_at,
  d.settled_by, d.reason, coalesce((SELECT t.id FROM runs t WHERE t.retry_of_no = d.run_no), '')
FROM runs r JOIN dead_letters d ON d.run_no = r.no JOIN workflows w ON w.no = d.workflow_no WHERE r.id = ?

-- discard_dead_letter --
-- 0 rows: it was retried or discarded before.
UPDATE dead_letters SET state = 'DISCARDED', settled_at = ?, settled_by = ?, reason = ?
WHERE run_no = ? AND state = 'OPEN'

-- dead_letter_state --
SELECT state FROM dead_letters WHERE run_no = ?
