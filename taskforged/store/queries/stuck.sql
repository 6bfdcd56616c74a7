-- numbers_of_namespaces --
SELECT no FROM namespaces ORDER BY no

-- open_runs_in_state --
-- Served by runs_by_trouble alone, which is why it says twice that they have not succeeded.
SELECT no FROM runs WHERE namespace_no = ? AND state = ? AND state <> 'SUCCEEDED' AND no > ? ORDER BY no LIMIT ?

-- runs_without_work --
-- Of some runs those that have no command, no timer and no sub-workflow.
SELECT r.no, r.sequence FROM runs r WHERE r.no IN (SELECT value FROM json_each(?)) AND r.ended_at IS NULL
  AND NOT EXISTS (SELECT 1 FROM commands c WHERE c.run_no = r.no)
  AND NOT EXISTS (SELECT 1 FROM timers t WHERE t.run_no = r.no)
  AND NOT EXISTS (SELECT 1 FROM children k WHERE k.parent_no = r.no)

-- sequences_of_runs --
SELECT r.no, r.sequence FROM runs r WHERE r.no IN (SELECT value FROM json_each(?)) AND r.state = 'PENDING'

-- overdue_timers --
SELECT count(*) FROM (SELECT 1 FROM timers WHERE due_at < ? AND (set_at IS NOT NULL OR due_at < ?) LIMIT 10000)

-- overdue_events --
SELECT count(*) FROM (SELECT 1 FROM events WHERE outcome = 'PENDING' AND created_at < ? LIMIT 10000)

-- ended_runs_after --
-- Every end of a run is an event of the engine, in the order in which they were decided.
SELECT no, run_no FROM events WHERE no > ? AND no <= ? AND source = 'engine' AND run_no IS NOT NULL AND type GLOB 'run.*'
ORDER BY no LIMIT ?

-- newest_event_before --
SELECT coalesce(max(no), 0) FROM events WHERE created_at <= ?

-- meta_value --
SELECT value FROM meta WHERE key = ?

-- set_meta_value --
INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value
