-- Every statement of the store. A name, a line that says what it is for, the SQL; sqlite.py calls them by name.

-- name: put_job
-- A job as it is now; a later row of the same id replaces the earlier one.
INSERT INTO job (id, state, user, uid, name, qos, array_id, array_index, submitted_at, ended_at, env_digest, spec, job)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    state = excluded.state, user = excluded.user, uid = excluded.uid, name = excluded.name, qos = excluded.qos,
    array_id = excluded.array_id, array_index = excluded.array_index, submitted_at = excluded.submitted_at,
    ended_at = excluded.ended_at, env_digest = excluded.env_digest, spec = excluded.spec, job = excluded.job;

-- name: put_attempt
-- An attempt as it is now.
INSERT INTO attempt (job_id, number, released, created_at, ended_at, attempt)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (job_id, number) DO UPDATE SET
    released = excluded.released, created_at = excluded.created_at, ended_at = excluded.ended_at,
    attempt = excluded.attempt;

-- name: put_environment
-- An environment, once: the same digest is the same environment.
INSERT INTO environment (digest, env) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING;

-- name: put_story
-- One more line of a job's story.
INSERT INTO story (job_id, attempt, at, kind, text, by) VALUES (?, ?, ?, ?, ?, ?);

-- name: copy_story
-- What was told of one job so far, for another too: an element of an array leaves the row it waited in.
INSERT INTO story (job_id, attempt, at, kind, text, by)
SELECT ?, attempt, at, kind, text, by FROM story WHERE job_id = ? ORDER BY line;

-- name: put_usage
-- What an account has used up to a moment.
INSERT INTO usage (account, device_seconds, at) VALUES (?, ?, ?)
ON CONFLICT (account) DO UPDATE SET device_seconds = excluded.device_seconds, at = excluded.at;

-- name: usage
-- What every account has used.
SELECT account, device_seconds, at FROM usage ORDER BY account;

-- name: put_reservation
-- A reservation as it is now; one of the same name that was over is forgotten.
INSERT INTO reservation (name, ended_at, reservation) VALUES (?, ?, ?)
ON CONFLICT (name) DO UPDATE SET ended_at = excluded.ended_at, reservation = excluded.reservation;

-- name: reservations
-- All reservations, those that are over too.
SELECT name, reservation FROM reservation ORDER BY name;

-- name: open_reservations
-- Those that are not over.
SELECT name, reservation FROM reservation WHERE ended_at IS NULL ORDER BY name;

-- name: forget_reservations
-- Those that were over before a time.
DELETE FROM reservation WHERE ended_at < ?;

-- name: put_meta
-- A number that outlives rows.
INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: next_job_id
-- The id that comes next, as far as the rows and the counter know.
SELECT max(coalesce((SELECT value FROM meta WHERE name = 'next_job_id'), 1), coalesce((SELECT max(id) FROM job), 0) + 1);

-- name: prove
-- A write that changes nothing anybody reads: if it commits, commits work.
INSERT INTO meta (name, value) VALUES ('checked', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1;

-- name: open_jobs
-- All jobs that are not final.
SELECT id, spec, job FROM job WHERE ended_at IS NULL ORDER BY id;

-- name: create_needed
-- Ended jobs that must be known: waited for, of an array that is not done, or holding devices (this connection only).
CREATE TEMP VIEW needed (id) AS
WITH named (number) AS (
    SELECT job_id FROM attempt WHERE released = 0
    UNION
    SELECT job.array_id FROM attempt JOIN job ON job.id = attempt.job_id -- what an array has come to takes all of it
    WHERE attempt.released = 0 AND job.array_id IS NOT NULL
    UNION
    SELECT array_id FROM job WHERE ended_at IS NULL AND array_id IS NOT NULL
    UNION
    SELECT CAST(key.value AS INTEGER) -- of "7_3" that is 7: the whole array
    FROM job, json_each(job.spec, '$.dependency.clauses') AS clause, json_each(clause.value, '$.jobs') AS key
    WHERE job.ended_at IS NULL
)
SELECT id FROM job WHERE ended_at IS NOT NULL AND id IN (SELECT number FROM named)
UNION
SELECT id FROM job WHERE ended_at IS NOT NULL AND array_id IN (SELECT number FROM named);

-- name: needed_jobs
-- Ended jobs that must be known all the same.
SELECT id, spec, job FROM job WHERE id IN (SELECT id FROM needed) ORDER BY id;

-- name: needed_ids
-- Their ids.
SELECT id FROM needed;

-- name: held_attempts
-- Attempts that hold devices.
SELECT job_id, number, attempt FROM attempt WHERE released = 0 ORDER BY job_id, number;

-- name: latest_attempts
-- The latest attempt of every job that is not final.
SELECT a.job_id, a.number, a.attempt FROM job AS j JOIN attempt AS a ON a.job_id = j.id
WHERE j.ended_at IS NULL AND a.number = (SELECT max(number) FROM attempt WHERE job_id = j.id)
ORDER BY a.job_id;

-- name: environment
-- The environment of a digest.
SELECT env FROM environment WHERE digest = ?;

-- name: job
-- One job.
SELECT id, spec, job FROM job WHERE id = ?;

-- name: array
-- The elements of an array, in index order.
SELECT id, spec, job FROM job WHERE array_id = ? AND array_id IS NOT NULL ORDER BY array_index, id;

-- name: array_size
-- How many rows an array has.
SELECT count(*) FROM job WHERE array_id = ? AND array_id IS NOT NULL;

-- name: array_not_completed
-- The first rows of an array, in index order, that did not end well, or not yet.
SELECT id, spec, job FROM job WHERE array_id = ? AND array_id IS NOT NULL AND state <> 'COMPLETED'
ORDER BY array_index, id LIMIT ?;

-- name: element
-- One element of an array, if it has a row of its own.
SELECT id, spec, job FROM job WHERE array_id = ? AND array_id IS NOT NULL AND array_index = ? ORDER BY id;

-- name: folded
-- The rows of an array that stand for further elements.
SELECT id, spec, job FROM job WHERE array_id = ? AND array_id IS NOT NULL AND instr(job, '"folded":') ORDER BY id;

-- name: array_before
-- The array, if it is one, of the last row before a job id that has no row of its own.
SELECT array_id FROM job WHERE id = (SELECT max(id) FROM job WHERE id < ?) AND array_id IS NOT NULL;

-- name: attempts
-- The attempts of a job, the first one first.
SELECT job_id, number, attempt FROM attempt WHERE job_id = ? ORDER BY number;

-- name: attempts_of
-- The attempts of several jobs (a JSON list of ids).
SELECT job_id, number, attempt FROM attempt WHERE job_id IN (SELECT value FROM json_each(?)) ORDER BY job_id, number;

-- name: story
-- The story of a job, in the order in which it happened.
SELECT job_id, attempt, at, kind, text, by FROM story WHERE job_id = ? ORDER BY line;

-- name: history
-- Ended jobs, the latest end first; a list that is NULL asks for any.
SELECT id, spec, job FROM job
WHERE ended_at IS NOT NULL
    AND (:since IS NULL OR ended_at >= :since)
    AND (:until IS NULL OR ended_at <= :until)
    AND (:users IS NULL OR user IN (SELECT value FROM json_each(:users)))
    AND (:states IS NULL OR state IN (SELECT value FROM json_each(:states)))
    AND (:ids IS NULL OR id IN (SELECT value FROM json_each(:ids)))
    AND (:names IS NULL OR EXISTS (SELECT 1 FROM json_each(:names) WHERE name_matches(job.name, value)))
ORDER BY ended_at DESC, id DESC
LIMIT :limit;

-- name: past
-- The jobs of some states (a JSON list) that ran and ended last, the latest end first: durations are learned from them.
SELECT id, spec, job FROM job
WHERE ended_at IS NOT NULL AND state IN (SELECT value FROM json_each(?)) AND json_extract(job, '$.ran') > 0
ORDER BY ended_at DESC, id DESC
LIMIT ?;

-- name: trimmable
-- Jobs that ended before a time, the oldest first, but none of a JSON list of ids that are still needed.
SELECT id FROM job
WHERE ended_at IS NOT NULL AND ended_at < ? AND id NOT IN (SELECT value FROM json_each(?))
ORDER BY ended_at, id
LIMIT ?;

-- name: forget_job
-- A job, and with it its attempts and its story.
DELETE FROM job WHERE id = ?;

-- name: forget_environments
-- Some of the environments that no job refers to any more.
DELETE FROM environment WHERE digest IN (
    SELECT digest FROM environment WHERE digest NOT IN (SELECT env_digest FROM job) LIMIT ?
);

-- name: recent_keys
-- The latest submits of a user, newest first; of an array only its first element.
SELECT id FROM job WHERE uid = ? AND (array_id IS NULL OR array_id = id) ORDER BY id DESC LIMIT ?;
