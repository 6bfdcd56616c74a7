-- all_tokens --
SELECT t.no, t.id, t.name, t.role, t.namespace_no, t.hash, t.created_at, t.expires_at, t.last_used_at, t.revoked_at
FROM tokens t ORDER BY t.no

-- insert_token --
INSERT INTO tokens (no, id, name, role, namespace_no, hash, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- revoke_token --
-- 0 rows: it was revoked before.
UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL

-- touch_token --
UPDATE tokens SET last_used_at = ? WHERE id = ?

-- save_secret --
INSERT INTO secrets (namespace_no, name, version, nonce, ciphertext, created_at, updated_at, hosts, key_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (namespace_no, name) DO UPDATE SET version = excluded.version, nonce = excluded.nonce,
  ciphertext = excluded.ciphertext, updated_at = excluded.updated_at, hosts = excluded.hosts, key_id = excluded.key_id

-- secret --
SELECT version, nonce, ciphertext, hosts, created_at FROM secrets WHERE namespace_no = ? AND name = ?

-- list_secrets --
SELECT name, version, created_at, updated_at, hosts, key_id FROM secrets WHERE namespace_no = ? AND name > ?
ORDER BY name LIMIT ?

-- delete_secret --
DELETE FROM secrets WHERE namespace_no = ? AND name = ?

-- insert_boot --
INSERT INTO boots (started_at, pid, version) VALUES (?, ?, ?)

-- stop_boot --
UPDATE boots SET stopped_at = ? WHERE epoch = ? AND stopped_at IS NULL
