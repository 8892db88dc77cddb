-- Devices that administrators have reserved, and reservations that are over until retention forgets them.

CREATE TABLE reservation (
    name        TEXT PRIMARY KEY,
    ended_at    REAL,
    reservation TEXT NOT NULL
) STRICT, WITHOUT ROWID;
