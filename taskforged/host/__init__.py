"""The embedded host: runs the pure engine over the store. Reading order: `feed`, `dispatcher`, `runner`, `timers`."""
