-- The first schema. Times are microseconds since 1970 (UTC). `no` columns are internal numbers in order of creation,
-- assigned by the journal; ids are what the outside sees. STRICT tables refuse values of the wrong type.

CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row per start of the daemon. An attempt belongs to the epoch that started it.
CREATE TABLE boots (
  epoch INTEGER PRIMARY KEY,
  started_at INTEGER NOT NULL,
  pid INTEGER NOT NULL,
  version TEXT NOT NULL,
  stopped_at INTEGER                       -- null: it did not stop, it died
) STRICT;

CREATE TABLE namespaces (
  no INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE workflows (
  no INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  namespace_no INTEGER NOT NULL REFERENCES namespaces (no),
  name TEXT NOT NULL,
  active INTEGER NOT NULL CHECK (active IN (0, 1)),
  latest INTEGER NOT NULL CHECK (latest >= 1),
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  deleted_at INTEGER
) STRICT;

-- A deleted workflow gives its name free and keeps its runs.
CREATE UNIQUE INDEX workflows_by_name ON workflows (namespace_no, name) WHERE deleted_at IS NULL;

CREATE TABLE workflow_versions (
  workflow_no INTEGER NOT NULL REFERENCES workflows (no),
  number INTEGER NOT NULL CHECK (number >= 1),
  content_hash TEXT NOT NULL,
  source TEXT NOT NULL,
  profile TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  created_by TEXT NOT NULL,
  PRIMARY KEY (workflow_no, number)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER workflow_versions_are_immutable BEFORE UPDATE ON workflow_versions
BEGIN SELECT RAISE(ABORT, 'a workflow version is immutable'); END;

CREATE TRIGGER workflow_versions_stay BEFORE DELETE ON workflow_versions
BEGIN SELECT RAISE(ABORT, 'a workflow version is immutable'); END;

-- Webhook triggers of the newest version of each workflow: the routing table.
CREATE TABLE webhooks (
  namespace_no INTEGER NOT NULL,
  path TEXT NOT NULL,
  workflow_no INTEGER NOT NULL REFERENCES workflows (no),
  trigger_id TEXT NOT NULL,
  PRIMARY KEY (namespace_no, path, workflow_no, trigger_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
  no INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  namespace_no INTEGER NOT NULL,
  source TEXT NOT NULL,
  path TEXT NOT NULL,
  outcome TEXT NOT NULL CHECK (outcome IN ('ACCEPTED', 'FILTERED', 'DUPLICATE', 'REJECTED', 'HANDSHAKE')),
  reason TEXT NOT NULL,
  verification TEXT NOT NULL,
  delivery_id TEXT NOT NULL,
  duplicate_of TEXT NOT NULL,
  headers TEXT NOT NULL,                   -- JSON object, credentials masked
  query TEXT NOT NULL,                     -- JSON object
  body BLOB NOT NULL,
  body_size INTEGER NOT NULL,
  content_type TEXT NOT NULL,
  remote TEXT NOT NULL,
  verdicts TEXT NOT NULL,                  -- JSON array
  created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX events_by_namespace ON events (namespace_no, no);
-- Rejected deliveries are kept in a bounded number: the oldest are found by this.
CREATE INDEX events_without_effect ON events (no) WHERE outcome IN ('REJECTED', 'DUPLICATE', 'HANDSHAKE');

-- Events that had an effect are part of the history.
CREATE TRIGGER events_are_immutable BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'an event is immutable'); END;

-- What was accepted, by what makes a delivery the same delivery.
CREATE TABLE deliveries (
  namespace_no INTEGER NOT NULL,
  path TEXT NOT NULL,
  key BLOB NOT NULL,
  event_no INTEGER NOT NULL REFERENCES events (no),
  PRIMARY KEY (namespace_no, path, key)
) STRICT, WITHOUT ROWID;

-- Projection of the history: where each run stands. `sequence` is the newest history event and the guard of every update.
CREATE TABLE runs (
  no INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  namespace_no INTEGER NOT NULL,
  workflow_no INTEGER NOT NULL,
  version INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN
    ('SCHEDULED', 'PENDING', 'RUNNING', 'PAUSED', 'SUCCEEDED', 'FAILED', 'DEAD', 'CANCELLED')),
  sequence INTEGER NOT NULL CHECK (sequence >= 1),
  head_hash BLOB NOT NULL CHECK (length(head_hash) = 32),
  cancel_requested INTEGER NOT NULL CHECK (cancel_requested IN (0, 1)),
  trigger TEXT NOT NULL,
  event_no INTEGER,
  request_id TEXT,
  request_digest BLOB,
  created_at INTEGER NOT NULL,
  started_at INTEGER,
  ended_at INTEGER,
  CHECK ((ended_at IS NOT NULL) = (state IN ('SUCCEEDED', 'FAILED', 'DEAD', 'CANCELLED'))),
  CHECK ((request_id IS NULL) = (request_digest IS NULL))
) STRICT;

CREATE INDEX runs_by_namespace ON runs (namespace_no, no);
CREATE INDEX runs_by_workflow ON runs (workflow_no, no);
CREATE INDEX runs_by_trouble ON runs (namespace_no, state, no) WHERE state <> 'SUCCEEDED';
CREATE INDEX runs_by_event ON runs (event_no) WHERE event_no IS NOT NULL;
CREATE INDEX runs_open ON runs (no) WHERE ended_at IS NULL;
CREATE UNIQUE INDEX runs_by_request ON runs (namespace_no, request_id) WHERE request_id IS NOT NULL;

-- Projection of the history: where each step stands. Inputs, outputs and errors are read from the history itself.
CREATE TABLE step_runs (
  run_no INTEGER NOT NULL,
  key TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN
    ('QUEUED', 'RUNNING', 'RETRYING', 'WAITING', 'NEEDS_DECISION', 'SUCCEEDED', 'FAILED', 'DEAD', 'SKIPPED', 'CANCELLED')),
  attempt INTEGER NOT NULL,
  started_at INTEGER NOT NULL,
  ended_at INTEGER,
  wake_at INTEGER,
  PRIMARY KEY (run_no, key),
  CHECK ((ended_at IS NOT NULL) = (state IN ('SUCCEEDED', 'FAILED', 'DEAD', 'SKIPPED', 'CANCELLED')))
) STRICT, WITHOUT ROWID;

-- The truth. Append-only, hash-chained per run.
CREATE TABLE history (
  run_no INTEGER NOT NULL,
  sequence INTEGER NOT NULL CHECK (sequence >= 1),
  at INTEGER NOT NULL,
  kind TEXT NOT NULL,
  step TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  body BLOB NOT NULL,                      -- canonical JSON
  hash BLOB NOT NULL CHECK (length(hash) = 32),
  PRIMARY KEY (run_no, sequence)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER history_is_append_only BEFORE UPDATE ON history
BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;

CREATE TRIGGER history_stays BEFORE DELETE ON history
BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;

-- The outbox: commands of the engine that an executor has to carry out. epoch 0: queued; else: claimed by that boot.
CREATE TABLE commands (
  run_no INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  PRIMARY KEY (run_no, sequence)
) STRICT, WITHOUT ROWID;

CREATE INDEX commands_queued ON commands (run_no, sequence) WHERE epoch = 0;
CREATE INDEX commands_claimed ON commands (run_no, sequence) WHERE epoch > 0;

CREATE TABLE timers (
  run_no INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  due_at INTEGER NOT NULL,
  PRIMARY KEY (run_no, sequence)
) STRICT, WITHOUT ROWID;

CREATE INDEX timers_by_due ON timers (due_at, run_no, sequence);

CREATE TABLE tokens (
  no INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  role TEXT NOT NULL CHECK (role IN ('admin', 'operator', 'trigger', 'viewer', 'worker')),
  namespace_no INTEGER REFERENCES namespaces (no),   -- null: all namespaces
  hash BLOB NOT NULL CHECK (length(hash) = 32),       -- SHA-256 of the whole credential, which has 256 random bits
  created_at INTEGER NOT NULL,
  expires_at INTEGER,
  last_used_at INTEGER,
  revoked_at INTEGER
) STRICT;

CREATE TABLE secrets (
  namespace_no INTEGER NOT NULL REFERENCES namespaces (no),
  name TEXT NOT NULL,
  version INTEGER NOT NULL CHECK (version >= 1),
  nonce BLOB NOT NULL,
  ciphertext BLOB NOT NULL,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  PRIMARY KEY (namespace_no, name)
) STRICT, WITHOUT ROWID;

INSERT INTO namespaces (no, name, created_at) VALUES (1, 'default', 0);
