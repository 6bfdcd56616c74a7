-- all_tokens --
SELECT t.no, t.id, t.name, t.role, t.namespace_no, t.hash, t.created_at, t.expires_at, t.last_used_at, t.revoked_at,
  t.previous_hash, t.previous_until, t.rotated_at, t.rotate_request
FROM tokens t ORDER BY t.no

-- insert_token --
INSERT INTO tokens (no, id, name, role, namespace_no, hash, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- revoke_token --
-- 0 rows: it was revoked before.
UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL

-- rotate_token --
UPDATE tokens SET hash = ?, previous_hash = ?, previous_until = ?, expires_at = ?, rotated_at = ?, rotate_request = ?
WHERE id = ? AND revoked_at IS NULL

-- touch_token --
UPDATE tokens SET last_used_at = ? WHERE id = ?

-- save_secret --
INSERT INTO secrets (namespace_no, name, version, nonce, ciphertext, created_at, updated_at, hosts, key_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (namespace_no, name) DO UPDATE SET version = excluded.version, nonce = excluded.nonce,
  ciphertext = excluded.ciphertext, updated_at = excluded.updated_at, hosts = excluded.hosts, key_id = excluded.key_id

-- secret --
SELECT version, nonce, ciphertext, hosts, key_id, created_at FROM secrets WHERE namespace_no = ? AND name = ?

-- list_secrets --
SELECT name, version, created_at, updated_at, hosts, key_id FROM secrets WHERE namespace_no = ? AND name > ?
ORDER BY name LIMIT ?

-- delete_secret --
DELETE FROM secrets WHERE namespace_no = ? AND name = ?

-- insert_boot --
INSERT INTO boots (started_at, pid, version) VALUES (?, ?, ?)

-- stop_boot --
UPDATE boots SET stopped_at = ? WHERE epoch = ? AND stopped_at IS NULL

-- insert_audit --
INSERT INTO audit (at, token_id, token_name, role, remote, method, namespace_no, resource_type, resource, outcome,
  message, request_id, count) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- audit_bounds --
SELECT coalesce(min(no), 0), coalesce(max(no), 0) FROM audit

-- oldest_audit --
SELECT no, at FROM audit ORDER BY no LIMIT ?

-- audit_rows --
-- The filter and the order are added where it is used.
SELECT no, at, token_id, token_name, role, remote, method, namespace_no, resource_type, resource, outcome, message,
  request_id, count FROM audit WHERE no >= ? AND no < ?

-- raise_audit_floor --
UPDATE audit_floor SET no = max(no, ?)

-- delete_audit --
DELETE FROM audit WHERE no <= ?

-- any_secret --
SELECT namespace_no, name, version, nonce, ciphertext, hosts, key_id FROM secrets LIMIT 1

-- all_secrets --
SELECT namespace_no, name, version, nonce, ciphertext, hosts, key_id FROM secrets

-- reseal_secret --
UPDATE secrets SET nonce = ?, ciphertext = ?, key_id = ? WHERE namespace_no = ? AND name = ?

-- forget_secrets --
DELETE FROM secrets

-- master_key --
SELECT id FROM master_key

-- record_master_key --
INSERT INTO master_key (one, id, since) VALUES (1, ?, ?)
ON CONFLICT (one) DO UPDATE SET id = excluded.id, since = excluded.since

-- name_first_key --
UPDATE secrets SET key_id = ? WHERE key_id = ''
