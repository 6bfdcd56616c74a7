"""SQLite: the journal (the only writer), read-only connections, migrations, named queries, one file per noun."""
