-- live_triggers --
-- All that newest versions declare; `schedule` and what follows it is read when it is needed.
SELECT t.no, t.id, t.namespace_no, t.workflow_no, t.key, t.kind, t.address, t.created_at, t.paused_at, t.paused_by,
  t.pause_reason, t.removed_at
FROM triggers t JOIN workflows w ON w.no = t.workflow_no WHERE w.deleted_at IS NULL ORDER BY t.no

-- insert_trigger --
INSERT INTO triggers (no, id, namespace_no, workflow_no, key, kind, address, created_at, profile, schedule, cursor,
  next_at, suspended_from)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- declare_trigger --
-- What a new version says of a trigger that is known; its schedule is another one, if it has one.
UPDATE triggers SET kind = ?, address = ?, removed_at = NULL, profile = ?, schedule = ?, cursor = max(cursor, ?),
  next_at = ?, suspended_from = ?, suspended_until = NULL WHERE no = ?

-- remove_trigger --
UPDATE triggers SET removed_at = ?, next_at = NULL, cursor = max(cursor, ?) WHERE no = ?

-- pause_trigger --
UPDATE triggers SET paused_at = ?, paused_by = ?, pause_reason = ? WHERE no = ? AND paused_at IS NULL

-- resume_trigger --
UPDATE triggers SET paused_at = NULL, paused_by = '', pause_reason = '' WHERE no = ? AND paused_at IS NOT NULL

-- suspend_schedule --
-- Nothing fires any more. A suspension whose due times are not settled yet goes on from where it began.
UPDATE triggers SET next_at = NULL, suspended_until = NULL,
  suspended_from = CASE WHEN suspended_from IS NOT NULL AND (suspended_until IS NULL OR cursor < suspended_until)
    THEN suspended_from ELSE ? END
WHERE no = ? AND kind = 'cron'

-- release_schedule --
-- It may fire again: the scan looks at it at once and settles what fell due meanwhile.
UPDATE triggers SET next_at = ?, suspended_until = ? WHERE no = ? AND kind = 'cron' AND suspended_until IS NULL

-- due_triggers --
SELECT no, workflow_no, key, cursor, next_at, suspended_from, suspended_until, schedule, ahead_until FROM triggers
WHERE next_at <= ? AND (next_at, no) > (?, ?) ORDER BY next_at, no LIMIT ?

-- count_due_triggers --
SELECT count(*) FROM triggers WHERE next_at IS NOT NULL

-- schedule_of_trigger --
SELECT profile, schedule, cursor, next_at, suspended_from, suspended_until, ahead_until FROM triggers WHERE no = ?

-- settle_schedule --
-- 0 rows: it was settled, changed, paused or removed meanwhile.
UPDATE triggers SET cursor = ?, next_at = ? WHERE no = ? AND cursor = ? AND next_at IS NOT NULL

-- insert_slot --
INSERT INTO schedule_slots (trigger_no, due_at, backfill, last_at, count, outcome, settled_at, late_us, event_no, reason)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- open_runs_of_trigger --
SELECT namespace_no, id FROM runs WHERE trigger_no = ? AND ended_at IS NULL LIMIT 10001

-- last_run_of_trigger --
-- Among the newest of the workflow only: an answer that would need a walk through all of them is not worth it.
SELECT e.id, r.created_at FROM (SELECT no, trigger, event_no, created_at FROM runs WHERE workflow_no = ?
  ORDER BY no DESC LIMIT 1000) r LEFT JOIN events e ON e.no = r.event_no WHERE r.trigger = ? ORDER BY r.no DESC LIMIT 1

-- slot_counts --
SELECT outcome, sum(count) FROM schedule_slots WHERE trigger_no = ? AND last_at >= ? GROUP BY outcome

-- fired_slots --
SELECT DISTINCT due_at FROM schedule_slots WHERE trigger_no = ? AND due_at >= ? AND due_at < ? AND outcome = 'FIRED'

-- upcoming_triggers --
SELECT next_at, no FROM triggers WHERE next_at IS NOT NULL ORDER BY next_at, no LIMIT ?

-- begin_schedules_again --
-- The clock was ahead, and has been set back to `wall`. What fired stays in the ledger; where that is pruned nobody knows.
UPDATE triggers SET ahead_until = max(ahead_until, cursor), cursor = :wall,
  next_at = CASE WHEN removed_at IS NULL AND (suspended_from IS NULL OR suspended_until IS NOT NULL) THEN :wall END
WHERE kind = 'cron' AND cursor > :wall + :ahead AND slots_from <= :wall

-- replan_schedules --
-- The scan finds nothing due that was not, and sets the next time by the rules of today.
UPDATE triggers SET next_at = min(next_at, ?) WHERE next_at IS NOT NULL

-- meta --
SELECT value FROM meta WHERE key = ?

-- set_meta --
INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value
