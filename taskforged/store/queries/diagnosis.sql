-- newest_times --
-- The newest moments on record: a clock that shows less was set back.
SELECT max(t) FROM (
  SELECT max(started_at) AS t FROM boots UNION ALL
  SELECT max(stopped_at) FROM boots UNION ALL
  SELECT created_at FROM (SELECT created_at FROM runs ORDER BY no DESC LIMIT 1) UNION ALL
  SELECT created_at FROM (SELECT created_at FROM events ORDER BY no DESC LIMIT 1)
)

-- recent_boots --
SELECT epoch, started_at, stopped_at FROM boots WHERE started_at > ? ORDER BY epoch DESC LIMIT 100

-- webhook_sources --
-- Newest definitions of workflows that listen for webhooks and may accept anybody; a compiler looks closer.
SELECT n.name, w.name, v.source FROM workflows w
JOIN namespaces n ON n.no = w.namespace_no
JOIN workflow_versions v ON v.workflow_no = w.no AND v.number = w.latest
WHERE w.deleted_at IS NULL AND v.source LIKE '%none%'
  AND EXISTS (SELECT 1 FROM triggers t WHERE t.workflow_no = w.no AND t.kind = 'webhook' AND t.removed_at IS NULL)
ORDER BY w.no LIMIT ?

-- live_tokens --
SELECT id, name, created_at, expires_at, last_used_at FROM tokens WHERE revoked_at IS NULL ORDER BY no LIMIT 10000

-- overdue_triggers --
SELECT n.name, w.name, t.key, t.next_at FROM triggers t
JOIN workflows w ON w.no = t.workflow_no JOIN namespaces n ON n.no = t.namespace_no
WHERE t.next_at < ? ORDER BY t.next_at LIMIT ?
