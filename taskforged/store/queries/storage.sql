-- retained_workflows --
-- Deleted ones, too: their runs age like all others.
SELECT no, namespace_no, name, retention FROM workflows ORDER BY no

-- runs_chunk_end --
-- The last number of the next thousand runs of a workflow, from its index alone.
SELECT no FROM (SELECT no FROM runs WHERE workflow_no = ? AND no > ? ORDER BY no LIMIT 1000) ORDER BY no DESC LIMIT 1

-- ended_runs_down --
SELECT no, ended_at IS NOT NULL FROM runs WHERE workflow_no = ? AND no < ? ORDER BY no DESC LIMIT 1000

-- all_ended_runs_down --
SELECT no, ended_at IS NOT NULL FROM runs WHERE no < ? ORDER BY no DESC LIMIT 1000

-- prunable_chunk --
-- The last parameter spares those that ended since then and have a request id: their caller may ask again.
SELECT p.no FROM prunable_runs p WHERE p.workflow_no = ? AND p.no > ? AND p.no <= ? AND (p.ended_at < ? OR p.no <= ?)
  AND (p.ended_at < ? OR NOT EXISTS (SELECT 1 FROM runs r WHERE r.no = p.no AND r.request_id IS NOT NULL))
ORDER BY p.no

-- run_created_at --
SELECT created_at FROM runs WHERE no = ?

-- prunable_run --
SELECT namespace_no, workflow_no, created_at FROM prunable_runs WHERE no = ?

-- purge_run --
INSERT INTO purge (run_no) VALUES (?)

-- leaving_runs --
SELECT run_no FROM purge ORDER BY run_no LIMIT ?

-- purge_is_over --
DELETE FROM purge WHERE run_no = ?

-- history_from --
SELECT min(sequence) FROM history WHERE run_no = ?

-- purge_history --
DELETE FROM history WHERE run_no = ? AND sequence < ?

-- purge_steps --
DELETE FROM step_runs WHERE run_no = ? AND key IN (SELECT key FROM step_runs WHERE run_no = ? LIMIT ?)

-- purge_logs --
DELETE FROM step_logs WHERE no IN (SELECT no FROM step_logs WHERE run_no = ? LIMIT ?)

-- add_pruned --
INSERT INTO pruned (what, namespace_no, workflow_no, count, until) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (what, namespace_no, workflow_no) DO UPDATE SET count = count + excluded.count,
  until = max(until, excluded.until)

-- all_pruned --
SELECT what, namespace_no, workflow_no, count, until FROM pruned

-- open_window --
INSERT INTO purge_until (what, until) VALUES (?, ?)

-- close_window --
DELETE FROM purge_until WHERE what = ?

-- events_chunk_end --
SELECT no, created_at FROM (SELECT no, created_at FROM events WHERE no > ? ORDER BY no LIMIT 500)
ORDER BY no DESC LIMIT 1

-- old_deliveries --
-- By what a delivery is recognised: remembered for its own time, since senders try again for days.
SELECT d.namespace_no, d.path, d.key FROM deliveries d JOIN events e ON e.no = d.event_no
WHERE d.event_no > ? AND d.event_no <= ? AND e.created_at < ?

-- forget_delivery --
DELETE FROM deliveries WHERE namespace_no = ? AND path = ? AND key = ?

-- prunable_events_chunk --
SELECT no, namespace_no, outcome, created_at FROM prunable_events
WHERE no > ? AND no <= ? AND (created_at < ? OR (created_at < ? AND outcome IN ('REJECTED', 'DUPLICATE', 'HANDSHAKE')))

-- prunable_event --
SELECT 1 FROM prunable_events WHERE no = ?

-- delete_event --
DELETE FROM events WHERE no = ?

-- cron_triggers --
SELECT no FROM triggers WHERE kind = 'cron' OR slots_from > 0 ORDER BY no

-- old_slots --
SELECT s.due_at, s.backfill, s.last_at FROM schedule_slots s JOIN triggers t ON t.no = s.trigger_no
WHERE s.trigger_no = ? AND s.due_at < ? AND s.settled_at < ? AND s.last_at <= t.cursor
ORDER BY s.due_at LIMIT 500

-- count_old_slots --
SELECT count(*) FROM schedule_slots s JOIN triggers t ON t.no = s.trigger_no
WHERE s.trigger_no = ? AND s.due_at < ? AND s.settled_at < ? AND s.last_at <= t.cursor

-- delete_slot --
DELETE FROM schedule_slots WHERE trigger_no = ? AND due_at = ? AND backfill = ?

-- slots_are_gone --
UPDATE triggers SET slots_from = max(slots_from, ?) WHERE no = ?

-- slots_from --
SELECT slots_from FROM triggers WHERE no = ?

-- logs_chunk_end --
SELECT no, at FROM (SELECT no, at FROM step_logs WHERE no > ? ORDER BY no LIMIT 1000) ORDER BY no DESC LIMIT 1

-- old_logs --
SELECT l.no FROM step_logs l LEFT JOIN runs r ON r.no = l.run_no
WHERE l.no > ? AND l.no <= ? AND l.at < ? AND (r.no IS NULL OR (r.ended_at IS NOT NULL AND l.step <> ''))

-- run_of_log --
SELECT r.no FROM step_logs l JOIN runs r ON r.no = l.run_no WHERE l.no = ?

-- mark_log --
-- A line of no step says that lines are missing; it leaves with its run.
UPDATE step_logs SET step = '', attempt = 0, stream = 'system', text = ? WHERE no = ?

-- delete_log_mark --
DELETE FROM step_logs WHERE run_no = ? AND no < ? AND step = ''

-- delete_log --
DELETE FROM step_logs WHERE no = ?

-- table_sizes --
SELECT coalesce(s.tbl_name, d.name), sum(d.pgsize) FROM dbstat d LEFT JOIN sqlite_schema s ON s.name = d.name
WHERE d.aggregate = TRUE GROUP BY 1 ORDER BY 2 DESC

-- last_sign_of_life --
-- When the daemons before this one were seen last.
SELECT max(t) FROM (
  SELECT max(max(started_at, coalesce(stopped_at, 0))) AS t FROM boots WHERE epoch < (SELECT max(epoch) FROM boots)
  UNION ALL
  SELECT created_at FROM (SELECT created_at FROM runs ORDER BY no DESC LIMIT 1) UNION ALL
  SELECT created_at FROM (SELECT created_at FROM events ORDER BY no DESC LIMIT 1)
)

-- first_boot --
SELECT min(started_at) FROM boots
