-- Files, uploads, jobs, events, checkpoints, models, keys, audit. `seq` is the order of creation.

CREATE TABLE files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    created_at INTEGER NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('uploaded', 'processed', 'error')),
    status_details TEXT,
    expires_at INTEGER,
    sha256 TEXT NOT NULL,
    -- A deleted file keeps its row, so that a list can go on after it.
    deleted_at INTEGER
);
CREATE INDEX files_by_owner ON files (owner, seq) WHERE deleted_at IS NULL;
CREATE INDEX files_by_expiry ON files (expires_at) WHERE deleted_at IS NULL AND expires_at IS NOT NULL;

CREATE TABLE uploads (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    bytes INTEGER NOT NULL CHECK (bytes > 0),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    mime_type TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('pending', 'completed', 'cancelled', 'expired')),
    file_id TEXT,
    file_expires_after INTEGER
);
CREATE INDEX uploads_pending ON uploads (expires_at) WHERE status = 'pending';

CREATE TABLE parts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    upload_id TEXT NOT NULL REFERENCES uploads (id),
    created_at INTEGER NOT NULL,
    bytes INTEGER NOT NULL CHECK (bytes > 0)
);
CREATE INDEX parts_by_upload ON parts (upload_id);

CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    estimated_finish INTEGER,
    model TEXT NOT NULL,
    base TEXT NOT NULL,
    status TEXT NOT NULL CHECK (
        status IN ('validating_files', 'queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')
    ),
    wanted TEXT NOT NULL CHECK (wanted IN ('run', 'pause', 'cancel')),
    method TEXT NOT NULL,
    hyperparameters TEXT NOT NULL,
    training_file TEXT NOT NULL,
    validation_file TEXT,
    suffix TEXT,
    seed INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    integrations TEXT NOT NULL,
    luthier TEXT NOT NULL,
    result_files TEXT NOT NULL,
    trained_tokens INTEGER,
    fine_tuned_model TEXT,
    error TEXT,
    run_name TEXT NOT NULL UNIQUE,
    priority INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    worker TEXT,
    lease_until REAL,
    planned_seconds REAL
);
CREATE INDEX jobs_by_owner ON jobs (owner, seq);
CREATE INDEX jobs_by_status ON jobs (status, seq);
CREATE INDEX jobs_by_owner_status ON jobs (owner, status, seq);
CREATE INDEX jobs_by_training_file ON jobs (training_file, status);
CREATE INDEX jobs_by_validation_file ON jobs (validation_file, status) WHERE validation_file IS NOT NULL;

CREATE TABLE job_metadata (
    job_id TEXT NOT NULL REFERENCES jobs (id),
    job_seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (job_id, key)
) WITHOUT ROWID;
CREATE INDEX job_metadata_by_value ON job_metadata (key, value, job_seq);

-- How often each owner was served: whoever waited longest comes first.
CREATE TABLE owners (
    owner TEXT PRIMARY KEY,
    last_claim INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE creates (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    key TEXT,
    digest TEXT NOT NULL,
    created_at REAL NOT NULL,
    job_id TEXT NOT NULL REFERENCES jobs (id)
);
CREATE UNIQUE INDEX creates_by_key ON creates (owner, key) WHERE key IS NOT NULL;
CREATE INDEX creates_by_digest ON creates (owner, digest, created_at);

CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    job_id TEXT NOT NULL REFERENCES jobs (id),
    created_at INTEGER NOT NULL,
    level TEXT NOT NULL CHECK (level IN ('info', 'warn', 'error')),
    message TEXT NOT NULL,
    type TEXT NOT NULL CHECK (type IN ('message', 'metrics')),
    data TEXT NOT NULL,
    -- An event with the same mark is not added twice, for instance when a worker reads a run folder again.
    mark TEXT
);
CREATE INDEX events_by_job ON events (job_id, seq);
CREATE UNIQUE INDEX events_by_mark ON events (job_id, mark) WHERE mark IS NOT NULL;

CREATE TABLE checkpoints (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    job_id TEXT NOT NULL REFERENCES jobs (id),
    created_at INTEGER NOT NULL,
    step INTEGER NOT NULL,
    name TEXT NOT NULL UNIQUE,
    metrics TEXT NOT NULL,
    path TEXT NOT NULL,
    UNIQUE (job_id, step)
);

CREATE TABLE models (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    created INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('base', 'tuned', 'checkpoint')),
    base TEXT NOT NULL,
    path TEXT,
    job_id TEXT,
    parent TEXT,
    deleted_at INTEGER
);
CREATE INDEX models_by_owner ON models (owner, seq) WHERE deleted_at IS NULL;

CREATE TABLE keys (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    scopes TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER,
    limits TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE
);

CREATE TABLE audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    owner TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    outcome TEXT NOT NULL,
    address TEXT NOT NULL
);
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
