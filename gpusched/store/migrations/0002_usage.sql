-- What each account has used of the devices, for fair share over a restart.

CREATE TABLE usage (
    account        TEXT PRIMARY KEY,
    device_seconds REAL NOT NULL,
    at             REAL NOT NULL
) STRICT, WITHOUT ROWID;
