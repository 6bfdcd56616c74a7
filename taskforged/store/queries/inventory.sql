-- What `taskforged.inventory` tells of a whole database while no daemon runs. Every list is in order of creation.

-- inventory_boots --
SELECT epoch, started_at, stopped_at FROM boots ORDER BY epoch

-- inventory_leftovers --
-- Slots and promises: rows that somebody still has to do something about, each with its run.
SELECT 'command' AS what, r.id, r.state, c.epoch > 0 AS claimed
  FROM commands c LEFT JOIN runs r ON r.no = c.run_no
UNION ALL SELECT 'timer', r.id, r.state, 0 FROM timers t LEFT JOIN runs r ON r.no = t.run_no
UNION ALL SELECT 'child', r.id, r.state, 0 FROM children k LEFT JOIN runs r ON r.no = k.parent_no

-- inventory_triggers --
SELECT t.no, n.name, w.name, t.key, t.kind, t.created_at, t.removed_at, t.cursor, t.schedule FROM triggers t
JOIN workflows w ON w.no = t.workflow_no JOIN namespaces n ON n.no = t.namespace_no ORDER BY t.no

-- inventory_slots --
SELECT s.due_at, s.last_at, s.count, s.outcome, e.id, s.reason,
  (SELECT json_group_array(r.id) FROM runs r WHERE r.event_no = s.event_no)
FROM schedule_slots s LEFT JOIN events e ON e.no = s.event_no
WHERE s.trigger_no = ? AND s.backfill = 0 ORDER BY s.due_at

-- inventory_events --
SELECT e.id, n.name, e.source, e.type, e.outcome, e.path, e.delivery_id, e.addressee,
  (SELECT p.id FROM runs p WHERE p.no = e.run_no), (SELECT json_group_array(r.id) FROM runs r WHERE r.event_no = e.no),
  coalesce(f.entries, 0), f.position,
  CASE WHEN length(e.body) <= 256 THEN CAST(e.body AS TEXT) END
FROM events e JOIN namespaces n ON n.no = e.namespace_no
LEFT JOIN (SELECT event_no, count(*) AS entries, min(position) AS position FROM event_feed GROUP BY event_no) f ON f.event_no = e.no
ORDER BY e.no

-- inventory_runs --
SELECT r.no, r.id, n.name, w.name, p.id, o.id, a.id FROM runs r
JOIN namespaces n ON n.no = r.namespace_no JOIN workflows w ON w.no = r.workflow_no
LEFT JOIN runs p ON p.no = r.parent_no LEFT JOIN runs o ON o.no = r.retry_of_no LEFT JOIN runs a ON a.no = r.rerun_of_no
ORDER BY r.no

-- inventory_dead_letters --
SELECT r.id, d.state FROM dead_letters d LEFT JOIN runs r ON r.no = d.run_no ORDER BY d.run_no
