-- What has to do with clocks that are set: pauses and times are told apart, and a ledger can be gone through again.

-- When the pause began that ends at due_at. Null: due_at is a time that somebody named, and comes by the wall clock.
ALTER TABLE timers ADD COLUMN set_at INTEGER;

-- Up to where the ledger was complete when the clock was found to have been ahead. What was entered up to there and has
-- not fired may fire after all; later than the cursor until that is over.
ALTER TABLE triggers ADD COLUMN ahead_until INTEGER NOT NULL DEFAULT 0;
