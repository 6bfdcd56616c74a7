-- insert_event --
INSERT INTO events (no, id, namespace_no, source, path, outcome, reason, verification, delivery_id, duplicate_of,
  headers, query, body, body_size, content_type, remote, verdicts, created_at, type, run_no)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- insert_delivery --
INSERT INTO deliveries (namespace_no, path, key, event_no) VALUES (?, ?, ?, ?)

-- delivery --
SELECT e.no, e.id, e.outcome FROM deliveries d JOIN events e ON e.no = d.event_no
WHERE d.namespace_no = ? AND d.path = ? AND d.key = ?

-- event_by_id --
SELECT no, id, namespace_no, source, path, outcome, reason, verification, delivery_id, duplicate_of, headers, query,
  body, body_size, content_type, remote, verdicts, created_at, type, run_no FROM events WHERE id = ?

-- event_by_no --
SELECT no, id, namespace_no, source, path, outcome, reason, verification, delivery_id, duplicate_of, headers, query,
  body, body_size, content_type, remote, verdicts, created_at, type, run_no FROM events WHERE no = ?

-- prune_events_without_effect --
DELETE FROM events WHERE no IN (
  SELECT no FROM events WHERE outcome IN ('REJECTED', 'DUPLICATE', 'HANDSHAKE') ORDER BY no DESC LIMIT 100 OFFSET ?)
