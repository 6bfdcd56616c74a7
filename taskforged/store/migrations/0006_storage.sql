-- Retention: what may be deleted, who says so, and what is told of it afterwards.

-- The only way for a run to leave. Naming it here removes its row in the same moment, so that it is gone for everybody,
-- and opens its history for deletion, in pieces, perhaps after a restart. The name goes when nothing of it is left.
CREATE TABLE purge (
  run_no INTEGER PRIMARY KEY
) STRICT;

-- While a transaction prunes events or due times: those of before this time. Empty when it commits.
CREATE TABLE purge_until (
  what TEXT PRIMARY KEY CHECK (what IN ('events', 'slots')),
  until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What is told of what is gone. workflow_no 0: of events.
CREATE TABLE pruned (
  what TEXT NOT NULL CHECK (what IN ('runs', 'events')),
  namespace_no INTEGER NOT NULL,
  workflow_no INTEGER NOT NULL,
  count INTEGER NOT NULL,
  until INTEGER NOT NULL,                  -- the newest creation of what is gone
  PRIMARY KEY (what, namespace_no, workflow_no)
) STRICT, WITHOUT ROWID;

-- What the newest version says of retention, as JSON, and up to when the ledger of a trigger is gone.
ALTER TABLE workflows ADD COLUMN retention TEXT NOT NULL DEFAULT '';
ALTER TABLE triggers ADD COLUMN slots_from INTEGER NOT NULL DEFAULT 0;

CREATE INDEX deliveries_by_event ON deliveries (event_no);
CREATE INDEX events_pending_by_run ON events (run_no) WHERE outcome = 'PENDING' AND run_no IS NOT NULL;

-- Runs that nobody needs any more. Kept are: open runs; dead letters that nobody has settled; children and parents of
-- open runs; runs of which a retry or a repetition is open; a retry whose original is still there, which could be
-- retried a second time; runs of which an event still waits for its triggers.
CREATE VIEW prunable_runs AS
SELECT r.no, r.id, r.namespace_no, r.workflow_no, r.created_at, r.ended_at FROM runs r
WHERE r.ended_at IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.run_no = r.no AND d.state = 'OPEN')
  AND NOT EXISTS (SELECT 1 FROM children c WHERE c.parent_no = r.no)
  AND NOT EXISTS (SELECT 1 FROM children c WHERE c.run_id = r.id)
  AND NOT EXISTS (SELECT 1 FROM runs c WHERE c.parent_no = r.no AND c.ended_at IS NULL)
  AND NOT EXISTS (SELECT 1 FROM runs p WHERE p.no = r.parent_no AND p.ended_at IS NULL)
  AND NOT EXISTS (SELECT 1 FROM runs t WHERE t.retry_of_no = r.no AND t.ended_at IS NULL)
  AND NOT EXISTS (SELECT 1 FROM runs t WHERE t.rerun_of_no = r.no AND t.ended_at IS NULL)
  AND NOT EXISTS (SELECT 1 FROM runs o WHERE o.no = r.retry_of_no)
  AND NOT EXISTS (SELECT 1 FROM events e WHERE e.run_no = r.no AND e.outcome = 'PENDING');

-- Events that nobody needs any more: decided, without a run that was started by them and is still there (it reads the
-- event whenever it is loaded), and forgotten as what their repetitions are recognised by.
CREATE VIEW prunable_events AS
SELECT e.no, e.namespace_no, e.outcome, e.created_at FROM events e
WHERE e.outcome <> 'PENDING'
  AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.event_no = e.no)
  AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_no = e.no);

CREATE TRIGGER purge_spares_what_is_needed BEFORE INSERT ON purge
WHEN NOT EXISTS (SELECT 1 FROM prunable_runs p WHERE p.no = NEW.run_no)
BEGIN SELECT RAISE(ABORT, 'the run is still needed'); END;

CREATE TRIGGER purge_takes_the_run AFTER INSERT ON purge
BEGIN
  DELETE FROM dead_letters WHERE run_no = NEW.run_no;
  DELETE FROM timers WHERE run_no = NEW.run_no;
  DELETE FROM commands WHERE run_no = NEW.run_no;
  DELETE FROM runs WHERE no = NEW.run_no;
END;

CREATE TRIGGER purge_is_not_changed BEFORE UPDATE ON purge
BEGIN SELECT RAISE(ABORT, 'a run that leaves stays named until it is gone'); END;

CREATE TRIGGER purge_is_thorough BEFORE DELETE ON purge
WHEN EXISTS (SELECT 1 FROM history h WHERE h.run_no = OLD.run_no)
  OR EXISTS (SELECT 1 FROM step_runs s WHERE s.run_no = OLD.run_no)
  OR EXISTS (SELECT 1 FROM step_logs l WHERE l.run_no = OLD.run_no)
BEGIN SELECT RAISE(ABORT, 'a run is deleted whole'); END;

CREATE TRIGGER runs_stay BEFORE DELETE ON runs
WHEN NOT EXISTS (SELECT 1 FROM purge p WHERE p.run_no = OLD.no)
BEGIN SELECT RAISE(ABORT, 'runs leave by way of the table purge'); END;

DROP TRIGGER history_stays;

CREATE TRIGGER history_stays BEFORE DELETE ON history
WHEN NOT EXISTS (SELECT 1 FROM purge p WHERE p.run_no = OLD.run_no)
BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;

CREATE TRIGGER step_runs_stay BEFORE DELETE ON step_runs
WHEN NOT EXISTS (SELECT 1 FROM purge p WHERE p.run_no = OLD.run_no)
BEGIN SELECT RAISE(ABORT, 'steps leave with their run'); END;

-- Deliveries without effect are no history: their number is bounded, and the oldest go.
CREATE TRIGGER events_stay BEFORE DELETE ON events
WHEN OLD.outcome NOT IN ('REJECTED', 'DUPLICATE', 'HANDSHAKE')
  AND (NOT EXISTS (SELECT 1 FROM purge_until u WHERE u.what = 'events' AND OLD.created_at < u.until)
    OR NOT EXISTS (SELECT 1 FROM prunable_events p WHERE p.no = OLD.no))
BEGIN SELECT RAISE(ABORT, 'an event stays until it is pruned'); END;

-- What lies behind the cursor of its trigger is settled; the rest of the ledger is still being written.
CREATE TRIGGER schedule_slots_stay BEFORE DELETE ON schedule_slots
WHEN NOT EXISTS (SELECT 1 FROM purge_until u WHERE u.what = 'slots' AND OLD.settled_at < u.until)
  OR OLD.last_at > (SELECT t.cursor FROM triggers t WHERE t.no = OLD.trigger_no)
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
