-- insert_event --
INSERT INTO events (no, id, namespace_no, source, path, outcome, reason, verification, delivery_id, duplicate_of,
  headers, query, body, body_size, content_type, remote, verdicts, created_at, type, run_no, depth, replay_of,
  addressee, created_by, origin, subject)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- insert_delivery --
INSERT INTO deliveries (namespace_no, path, key, event_no) VALUES (?, ?, ?, ?)

-- delivery --
SELECT e.no, e.id, e.outcome FROM deliveries d JOIN events e ON e.no = d.event_no
WHERE d.namespace_no = ? AND d.path = ? AND d.key = ?

-- event_by_id --
SELECT no, id, namespace_no, source, path, outcome, reason, verification, delivery_id, duplicate_of, headers, query,
  body, body_size, content_type, remote, verdicts, created_at, type, run_no, depth, replay_of, addressee, created_by,
  origin, subject FROM events WHERE id = ?

-- event_by_no --
SELECT no, id, namespace_no, source, path, outcome, reason, verification, delivery_id, duplicate_of, headers, query,
  body, body_size, content_type, remote, verdicts, created_at, type, run_no, depth, replay_of, addressee, created_by,
  origin, subject FROM events WHERE no = ?

-- prune_events_without_effect --
DELETE FROM events WHERE no IN (
  SELECT no FROM events WHERE outcome IN ('REJECTED', 'DUPLICATE', 'HANDSHAKE') ORDER BY no DESC LIMIT 100 OFFSET ?)

-- pending_events --
-- In order of their numbers: what was published first is asked about first. Some namespaces have no room just now.
SELECT no, id, namespace_no, source, path, outcome, reason, verification, delivery_id, duplicate_of, headers, query,
  body, body_size, content_type, remote, verdicts, created_at, type, run_no, depth, replay_of, addressee, created_by,
  origin, subject FROM events
WHERE outcome = 'PENDING' AND no > ? AND namespace_no NOT IN (SELECT value FROM json_each(?)) ORDER BY no LIMIT ?

-- decide_event --
-- 0 rows: it was decided before.
UPDATE events SET outcome = ?, verdicts = ? WHERE no = ? AND outcome = 'PENDING'

-- count_pending_events --
SELECT count(*) FROM events WHERE outcome = 'PENDING'

-- replays_of --
SELECT id FROM events WHERE replay_of = ? ORDER BY no LIMIT 100

-- publisher --
SELECT id, workflow_no FROM runs WHERE no = ?

-- cause_of_run --
SELECT r.id, r.workflow_no, e.id, e.type, e.source, e.run_no, r.namespace_no, e.namespace_no, r.parent_no
FROM runs r LEFT JOIN events e ON e.no = r.event_no WHERE r.no = ?

-- removed_from_feed --
-- Positions whose events retention has taken; from the beginning the positions go, too.
SELECT count(*) FROM event_feed f WHERE f.position > ? AND f.position <= ?
  AND NOT EXISTS (SELECT 1 FROM events e WHERE e.no = f.event_no)

-- feed_bounds --
-- The oldest position that is kept, and the newest that there ever was.
SELECT coalesce((SELECT min(position) FROM event_feed), 0),
  coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'event_feed'), 0)
