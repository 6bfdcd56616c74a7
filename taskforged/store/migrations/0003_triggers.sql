-- Triggers with an identity of their own, the ledger of schedules, events that wait for their triggers.

-- A trigger is known by its workflow and its key in `on:`; its row stays when it is changed, removed and declared again.
CREATE TABLE triggers (
  no INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  namespace_no INTEGER NOT NULL REFERENCES namespaces (no),
  workflow_no INTEGER NOT NULL REFERENCES workflows (no),
  key TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('webhook', 'cron', 'event')),
  address TEXT NOT NULL,                   -- path of a webhook, type of an event, '' for cron
  created_at INTEGER NOT NULL,
  removed_at INTEGER,                      -- the newest version does not declare it any more
  paused_at INTEGER,
  paused_by TEXT NOT NULL DEFAULT '',
  pause_reason TEXT NOT NULL DEFAULT '',
  -- Of cron triggers only.
  profile TEXT NOT NULL DEFAULT '',        -- the rules that the expression is read by
  schedule TEXT NOT NULL DEFAULT '',       -- JSON: what the due times depend on, to notice a change
  cursor INTEGER NOT NULL DEFAULT 0,       -- every due time up to here is in the ledger
  next_at INTEGER,                         -- when to look again; null: not before somebody changes something
  suspended_from INTEGER,                  -- the last time that nothing could fire: paused, or the workflow inactive
  suspended_until INTEGER,                 -- null: it still lasts
  UNIQUE (workflow_no, key)
) STRICT;

-- The scan for what is due reads this and nothing else.
CREATE INDEX triggers_due ON triggers (next_at) WHERE next_at IS NOT NULL;

INSERT INTO triggers (id, namespace_no, workflow_no, key, kind, address, created_at)
SELECT 'trg_' || lower(hex(randomblob(13))), h.namespace_no, h.workflow_no, h.trigger_id, 'webhook', h.path, w.updated_at
FROM webhooks h JOIN workflows w ON w.no = h.workflow_no;

DROP TABLE webhooks;

-- The ledger: what became of each due time. A range of due times that started nothing is one row.
CREATE TABLE schedule_slots (
  trigger_no INTEGER NOT NULL REFERENCES triggers (no),
  due_at INTEGER NOT NULL,                 -- the due time, or the first of a range
  backfill INTEGER NOT NULL,               -- 0: by the schedule; else the number of the backfill's first event
  last_at INTEGER NOT NULL,                -- the last of a range
  count INTEGER NOT NULL CHECK (count >= 1),
  outcome TEXT NOT NULL CHECK (outcome IN
    ('FIRED', 'COALESCED', 'SKIPPED', 'MISSED', 'SUPPRESSED', 'FILTERED', 'FAILED')),
  settled_at INTEGER NOT NULL,
  late_us INTEGER NOT NULL,                -- of one that fired
  event_no INTEGER,
  reason TEXT NOT NULL,
  PRIMARY KEY (trigger_no, due_at, backfill),
  CHECK (last_at >= due_at)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER schedule_slots_are_immutable BEFORE UPDATE ON schedule_slots
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;

-- Events, with what is new of them; SQLite changes a CHECK only by making the table anew.
CREATE TABLE new_events (
  no INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  namespace_no INTEGER NOT NULL,
  source TEXT NOT NULL CHECK (source IN ('webhook', 'cron', 'manual', 'internal', 'engine')),
  path TEXT NOT NULL,
  outcome TEXT NOT NULL CHECK (outcome IN
    ('PENDING', 'ACCEPTED', 'FILTERED', 'UNMATCHED', 'DUPLICATE', 'REJECTED', 'HANDSHAKE')),
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
  created_at INTEGER NOT NULL,
  type TEXT NOT NULL,
  run_no INTEGER,                          -- the run that published it
  depth INTEGER NOT NULL,                  -- runs in the chain of its causes
  replay_of TEXT NOT NULL,
  addressee TEXT NOT NULL,                 -- `workflow/trigger` when only one trigger was asked
  created_by TEXT NOT NULL,                -- the token that published, fired or replayed it
  origin TEXT NOT NULL,                    -- `source` of a CloudEvent
  subject TEXT NOT NULL
) STRICT;

INSERT INTO new_events
SELECT no, id, namespace_no,
  CASE WHEN source = 'internal' AND type LIKE 'run.%' THEN 'engine' ELSE source END, path,
  CASE WHEN source = 'internal' AND outcome = 'FILTERED' THEN 'UNMATCHED' ELSE outcome END,
  reason, verification, delivery_id, duplicate_of, headers, query, body, body_size, content_type, remote, verdicts,
  created_at, type, run_no, 0, '', '', '', '', ''
FROM events;

CREATE TABLE new_deliveries (
  namespace_no INTEGER NOT NULL,
  path TEXT NOT NULL,
  key BLOB NOT NULL,
  event_no INTEGER NOT NULL REFERENCES new_events (no),
  PRIMARY KEY (namespace_no, path, key)
) STRICT, WITHOUT ROWID;

INSERT INTO new_deliveries SELECT namespace_no, path, key, event_no FROM deliveries;

DROP TABLE deliveries;
DROP TABLE events;
ALTER TABLE new_events RENAME TO events;
ALTER TABLE new_deliveries RENAME TO deliveries;

CREATE INDEX events_by_namespace ON events (namespace_no, no);
-- Lists leave the engine's own events out, of which every run makes one.
CREATE INDEX events_of_note ON events (namespace_no, no) WHERE source <> 'engine';
CREATE INDEX events_without_effect ON events (no) WHERE outcome IN ('REJECTED', 'DUPLICATE', 'HANDSHAKE');
CREATE INDEX events_pending ON events (no) WHERE outcome = 'PENDING';
CREATE INDEX events_by_original ON events (replay_of) WHERE replay_of <> '';

-- An event never changes; one that was stored first and asked about later gets its outcome and verdicts, once.
CREATE TRIGGER events_are_immutable BEFORE UPDATE ON events WHEN OLD.outcome <> 'PENDING'
BEGIN SELECT RAISE(ABORT, 'an event is immutable'); END;

CREATE TRIGGER events_keep_their_content BEFORE UPDATE OF no, id, namespace_no, source, path, reason, verification,
  delivery_id, duplicate_of, headers, query, body, body_size, content_type, remote, created_at, type, run_no, depth,
  replay_of, addressee, created_by, origin, subject ON events
BEGIN SELECT RAISE(ABORT, 'an event is immutable'); END;

-- Whose authority the newest version has; applying it unchanged with another token changes this and nothing else.
ALTER TABLE workflows ADD COLUMN applied_by TEXT NOT NULL DEFAULT '';

UPDATE workflows SET applied_by = coalesce((SELECT v.created_by FROM workflow_versions v
  WHERE v.workflow_no = workflows.no AND v.number = workflows.latest), '');

-- The cron trigger that started a run, for its overlap policy.
ALTER TABLE runs ADD COLUMN trigger_no INTEGER;

CREATE INDEX runs_open_by_trigger ON runs (trigger_no) WHERE trigger_no IS NOT NULL AND ended_at IS NULL;
