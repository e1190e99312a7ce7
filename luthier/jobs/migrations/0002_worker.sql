-- Where a worker is with a job, and the end of jobs to be told by webhook.

CREATE TABLE progress (
    job_id TEXT PRIMARY KEY REFERENCES jobs (id),
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE notices (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    job_id TEXT NOT NULL REFERENCES jobs (id),
    type TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    -- Deliveries were made of it, one for each address there was then.
    spread INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX notices_to_spread ON notices (seq) WHERE spread = 0;

-- In the transaction that ends a job, whoever ends it.
CREATE TRIGGER a_job_ended AFTER UPDATE OF status ON jobs
WHEN NEW.status <> OLD.status AND NEW.status IN ('succeeded', 'failed', 'cancelled')
BEGIN
    INSERT INTO notices (id, job_id, type, created_at)
    VALUES ('evt_' || lower(hex(randomblob(12))), NEW.id, 'fine_tuning.job.' || NEW.status, NEW.finished_at);
END;

CREATE TABLE deliveries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    notice_id TEXT NOT NULL REFERENCES notices (id),
    url TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_at REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'given_up')),
    answer TEXT,
    UNIQUE (notice_id, url)
);
CREATE INDEX deliveries_waiting ON deliveries (next_at) WHERE state = 'waiting';
