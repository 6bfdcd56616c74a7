-- Who may do what, who did what, and how secrets are kept.

-- `hosts` is a JSON array, empty: may be sent anywhere. `key_id` is '' for the key that was there before keys had ids.
ALTER TABLE secrets ADD COLUMN hosts TEXT NOT NULL DEFAULT '[]';
ALTER TABLE secrets ADD COLUMN key_id TEXT NOT NULL DEFAULT '';

-- Which master key the secrets are encrypted with: its fingerprint, so that a wrong one is noticed at start.
CREATE TABLE master_key (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  id TEXT NOT NULL,
  since INTEGER NOT NULL
) STRICT;

-- A token that was rotated: its secret before the present one works until `previous_until`.
ALTER TABLE tokens ADD COLUMN previous_hash BLOB;
ALTER TABLE tokens ADD COLUMN previous_until INTEGER;
ALTER TABLE tokens ADD COLUMN rotated_at INTEGER;
ALTER TABLE tokens ADD COLUMN rotate_request TEXT NOT NULL DEFAULT '';

-- One row for each call that changes something or tried to.
CREATE TABLE audit (
  no INTEGER PRIMARY KEY,
  at INTEGER NOT NULL,
  token_id TEXT NOT NULL,                  -- '': nobody was known
  token_name TEXT NOT NULL,
  role TEXT NOT NULL,
  remote TEXT NOT NULL,
  method TEXT NOT NULL,                    -- `RunService/StartRun`, `POST /events`, `Authenticate`
  namespace_no INTEGER,                    -- null: of no namespace, or of one that does not exist
  resource_type TEXT NOT NULL,
  resource TEXT NOT NULL,
  outcome TEXT NOT NULL,                   -- OK or the canonical code
  message TEXT NOT NULL,
  request_id TEXT NOT NULL,
  count INTEGER NOT NULL CHECK (count >= 1)  -- failed authentications are counted, not told one by one
) STRICT;

CREATE TRIGGER audit_is_append_only BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;

-- Retention moves the floor first, and it only rises: a row above it cannot be deleted.
CREATE TABLE audit_floor (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  no INTEGER NOT NULL
) STRICT;

INSERT INTO audit_floor VALUES (1, 0);

CREATE TRIGGER audit_floor_only_rises BEFORE UPDATE ON audit_floor WHEN NEW.no < OLD.no
BEGIN SELECT RAISE(ABORT, 'the floor of the audit only rises'); END;

CREATE TRIGGER audit_floor_stays BEFORE DELETE ON audit_floor
BEGIN SELECT RAISE(ABORT, 'the floor of the audit stays'); END;

CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit WHEN OLD.no > (SELECT no FROM audit_floor)
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
