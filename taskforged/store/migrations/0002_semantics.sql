-- Limits, queues, later starts, sub-workflows, lineage, dead letters, internal events, logs of steps.

-- Labels: a JSON object of texts. A limit of 0 means none.
ALTER TABLE namespaces ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE namespaces ADD COLUMN weight REAL NOT NULL DEFAULT 1.0 CHECK (weight > 0);
ALTER TABLE namespaces ADD COLUMN running_steps_max INTEGER NOT NULL DEFAULT 0;
ALTER TABLE namespaces ADD COLUMN running_runs_max INTEGER NOT NULL DEFAULT 0;
ALTER TABLE namespaces ADD COLUMN pending_runs_max INTEGER NOT NULL DEFAULT 0;
ALTER TABLE namespaces ADD COLUMN requests_per_s REAL NOT NULL DEFAULT 0;

-- Queues that somebody has set; any other has no limit, priority 5, and is not paused.
CREATE TABLE queues (
  namespace_no INTEGER NOT NULL REFERENCES namespaces (no),
  name TEXT NOT NULL,
  priority INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 9),
  running_steps_max INTEGER NOT NULL CHECK (running_steps_max >= 0),
  paused INTEGER NOT NULL CHECK (paused IN (0, 1)),
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  PRIMARY KEY (namespace_no, name)
) STRICT, WITHOUT ROWID;

-- The row of a run that has started and has not ended is the one row of its slot: in its namespace, in its group.
ALTER TABLE runs ADD COLUMN queue TEXT NOT NULL DEFAULT 'default';
ALTER TABLE runs ADD COLUMN priority INTEGER NOT NULL DEFAULT 5;
ALTER TABLE runs ADD COLUMN group_key TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN group_limit INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN run_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN parent_no INTEGER;
ALTER TABLE runs ADD COLUMN retry_of_no INTEGER;
ALTER TABLE runs ADD COLUMN rerun_of_no INTEGER;

CREATE INDEX runs_by_parent ON runs (parent_no) WHERE parent_no IS NOT NULL;
-- A run is retried once; who wants another try retries the retry.
CREATE UNIQUE INDEX runs_by_retry ON runs (retry_of_no) WHERE retry_of_no IS NOT NULL;
CREATE INDEX runs_by_rerun ON runs (rerun_of_no) WHERE rerun_of_no IS NOT NULL;
CREATE INDEX runs_with_group ON runs (namespace_no, group_key) WHERE ended_at IS NULL AND group_key <> '';

-- The outbox by lane. A claimed command is the one row of a step's slot.
ALTER TABLE commands ADD COLUMN namespace_no INTEGER NOT NULL DEFAULT 1;
ALTER TABLE commands ADD COLUMN queue TEXT NOT NULL DEFAULT 'default';
ALTER TABLE commands ADD COLUMN priority INTEGER NOT NULL DEFAULT 5;

DROP INDEX commands_queued;
CREATE INDEX commands_queued ON commands (namespace_no, queue, priority, run_no, sequence) WHERE epoch = 0;

-- Sub-workflows that a step waits for, from the decision to start one until its parent knows of its end.
CREATE TABLE children (
  parent_no INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  run_id TEXT NOT NULL,
  workflow TEXT NOT NULL,
  version INTEGER NOT NULL,
  cancelled INTEGER NOT NULL CHECK (cancelled IN (0, 1)),
  PRIMARY KEY (parent_no, sequence)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX children_by_run ON children (run_id);

CREATE TABLE dead_letters (
  run_no INTEGER PRIMARY KEY,
  namespace_no INTEGER NOT NULL,
  workflow_no INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('OPEN', 'RETRIED', 'DISCARDED')),
  step TEXT NOT NULL,
  code TEXT NOT NULL,
  error TEXT NOT NULL,                     -- JSON object
  attempts INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  settled_at INTEGER,
  settled_by TEXT NOT NULL DEFAULT '',
  reason TEXT NOT NULL DEFAULT '',
  CHECK ((settled_at IS NULL) = (state = 'OPEN'))
) STRICT;

CREATE INDEX dead_letters_by_namespace ON dead_letters (namespace_no, state, run_no);

-- Internal events: published by steps, or by the engine itself when a run ends.
ALTER TABLE events ADD COLUMN type TEXT NOT NULL DEFAULT '';
ALTER TABLE events ADD COLUMN run_no INTEGER;

-- What executors said. Not part of the history: bounded, and dropped when it is too much.
CREATE TABLE step_logs (
  no INTEGER PRIMARY KEY,
  run_no INTEGER NOT NULL,
  step TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  at INTEGER NOT NULL,
  stream TEXT NOT NULL CHECK (stream IN ('system', 'stdout', 'stderr')),
  text TEXT NOT NULL
) STRICT;

CREATE INDEX step_logs_by_run ON step_logs (run_no, no);

-- What the newest version says of its concurrency group, as JSON, so that definitions can be held against each other.
ALTER TABLE workflows ADD COLUMN concurrency TEXT NOT NULL DEFAULT '';
