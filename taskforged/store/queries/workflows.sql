-- workflow_by_name --
SELECT w.no, w.id, n.name, w.name, w.active, w.latest, w.created_at, w.updated_at
FROM workflows w JOIN namespaces n ON n.no = w.namespace_no
WHERE w.namespace_no = ? AND w.name = ? AND w.deleted_at IS NULL

-- workflow_by_no --
SELECT w.no, w.id, n.name, w.name, w.active, w.latest, w.created_at, w.updated_at
FROM workflows w JOIN namespaces n ON n.no = w.namespace_no WHERE w.no = ?

-- list_workflows --
SELECT w.no, w.id, n.name, w.name, w.active, w.latest, w.created_at, w.updated_at
FROM workflows w JOIN namespaces n ON n.no = w.namespace_no
WHERE w.namespace_no = ? AND w.name > ? AND w.deleted_at IS NULL ORDER BY w.name LIMIT ?

-- insert_workflow --
INSERT INTO workflows (no, id, namespace_no, name, active, latest, created_at, updated_at, concurrency,
  applied_by, retention)
VALUES (?, ?, ?, ?, 1, 1, ?, ?, ?, ?, ?)

-- bump_workflow --
-- 0 rows: another version was applied meanwhile.
UPDATE workflows SET latest = ?, updated_at = ?, concurrency = ?, applied_by = ?, retention = ?
WHERE no = ? AND latest = ? AND deleted_at IS NULL

-- set_applied_by --
UPDATE workflows SET applied_by = ? WHERE no = ?

-- set_active --
UPDATE workflows SET active = ?, updated_at = ? WHERE no = ? AND deleted_at IS NULL

-- delete_workflow --
UPDATE workflows SET deleted_at = ?, active = 0 WHERE no = ? AND deleted_at IS NULL

-- insert_version --
INSERT INTO workflow_versions (workflow_no, number, content_hash, source, profile, created_at, created_by)
VALUES (?, ?, ?, ?, ?, ?, ?)

-- version --
SELECT workflow_no, number, content_hash, source, profile, created_at, created_by FROM workflow_versions
WHERE workflow_no = ? AND number = ?

-- list_versions --
SELECT workflow_no, number, content_hash, '', profile, created_at, created_by FROM workflow_versions
WHERE workflow_no = ? AND number < ? ORDER BY number DESC LIMIT ?

-- namespaces --
SELECT no, name FROM namespaces

-- next_workflow_no --
SELECT coalesce(max(no), 0) + 1 FROM workflows

-- all_workflows --
SELECT no, id, namespace_no, name, active, latest, created_at, updated_at, concurrency, applied_by, retention FROM workflows
WHERE deleted_at IS NULL
