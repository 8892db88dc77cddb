"""Where jobs, attempts and their story are kept: SQLite for the daemon, plain memory for the simulator and tests.

`sqlite.py` is the only file that knows sqlite3; the SQL itself is in `schema.sql`, `queries.sql` and `migrations/`.
"""
