-- The tables as they are today, for people to read. A test holds that applying all migrations gives exactly this.
--
-- meta         numbers that outlive rows: next_job_id (ids are never reused), checked (proofs that a write works)
-- environment  the environments of submits, once per digest, as canonical JSON
-- job          what is queried has a column; `spec` and `job` are JSON and together the complete job.
--              ended_at is set if and only if the state is final.
-- attempt      executions; `released` = 0 while the attempt holds its devices
-- story        the lines of every job's story, in the order in which they were committed
-- usage        device-seconds of the ended attempts of each account, decayed to the moment `at`
-- reservation  devices kept for some users; ended_at is set when it is over or was taken back

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE environment (
    digest TEXT PRIMARY KEY,
    env    TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE job (
    id           INTEGER PRIMARY KEY,
    state        TEXT NOT NULL,
    user         TEXT NOT NULL,
    uid          INTEGER NOT NULL,
    name         TEXT NOT NULL,
    qos          TEXT NOT NULL,
    array_id     INTEGER,
    array_index  INTEGER,
    submitted_at REAL NOT NULL,
    ended_at     REAL,
    env_digest   TEXT NOT NULL,
    spec         TEXT NOT NULL,
    job          TEXT NOT NULL
) STRICT;

CREATE INDEX job_open ON job (id) WHERE ended_at IS NULL;
CREATE INDEX job_ended ON job (ended_at, id) WHERE ended_at IS NOT NULL;
CREATE INDEX job_array ON job (array_id, array_index) WHERE array_id IS NOT NULL;
CREATE INDEX job_environment ON job (env_digest);

CREATE TABLE attempt (
    job_id     INTEGER NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    number     INTEGER NOT NULL,
    released   INTEGER NOT NULL,
    created_at REAL NOT NULL,
    ended_at   REAL,
    attempt    TEXT NOT NULL,
    PRIMARY KEY (job_id, number)
) STRICT, WITHOUT ROWID;

CREATE INDEX attempt_held ON attempt (job_id, number) WHERE released = 0;

CREATE TABLE story (
    line    INTEGER PRIMARY KEY,
    job_id  INTEGER NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    at      REAL NOT NULL,
    kind    TEXT NOT NULL,
    text    TEXT NOT NULL,
    by      TEXT NOT NULL
) STRICT;

CREATE INDEX story_of_job ON story (job_id, line);

CREATE TABLE usage (
    account        TEXT PRIMARY KEY,
    device_seconds REAL NOT NULL,
    at             REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE reservation (
    name        TEXT PRIMARY KEY,
    ended_at    REAL,
    reservation TEXT NOT NULL
) STRICT, WITHOUT ROWID;
