-- The order in which events were decided, for watchers: numbers of events are assigned before their commits, and commits
-- need not follow in the same order. A position is assigned inside of the commit, so that none below one that is seen
-- can come later. An event enters once, when its triggers were asked.
CREATE TABLE event_feed (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  event_no INTEGER NOT NULL
) STRICT;

INSERT INTO event_feed (event_no) SELECT no FROM events WHERE outcome <> 'PENDING' ORDER BY no;

CREATE TRIGGER events_enter_feed AFTER INSERT ON events WHEN NEW.outcome <> 'PENDING'
BEGIN INSERT INTO event_feed (event_no) VALUES (NEW.no); END;

CREATE TRIGGER events_enter_feed_late AFTER UPDATE OF outcome ON events
WHEN OLD.outcome = 'PENDING' AND NEW.outcome <> 'PENDING'
BEGIN INSERT INTO event_feed (event_no) VALUES (NEW.no); END;

-- Only the beginning is cut off, so that what is left has no gaps: two entries for each event that goes, since others
-- may have gone before from the middle.
CREATE TRIGGER events_leave_feed AFTER DELETE ON events
BEGIN
  DELETE FROM event_feed WHERE position = (SELECT min(position) FROM event_feed)
    AND NOT EXISTS (SELECT 1 FROM events WHERE no = event_no);
  DELETE FROM event_feed WHERE position = (SELECT min(position) FROM event_feed)
    AND NOT EXISTS (SELECT 1 FROM events WHERE no = event_no);
END;
