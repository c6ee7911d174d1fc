CREATE TABLE schema_version (
	version INTEGER NOT NULL
);
CREATE TABLE files (
	content_hash VARCHAR(64) NOT NULL,
	name TEXT NOT NULL,
	bytes BIGINT NOT NULL,
	job TEXT NOT NULL,
	dataset TEXT,
	submitted TEXT NOT NULL,
	PRIMARY KEY (content_hash)
);
CREATE TABLE jobs (
	id TEXT NOT NULL,
	kind TEXT NOT NULL,
	file TEXT,
	dataset TEXT,
	priority TEXT NOT NULL,
	state TEXT NOT NULL,
	progress FLOAT NOT NULL,
	attempt INTEGER NOT NULL,
	last_branch INTEGER DEFAULT '0' NOT NULL,
	last_step BIGINT,
	error TEXT,
	payload JSON NOT NULL,
	created TEXT NOT NULL,
	updated TEXT NOT NULL,
	PRIMARY KEY (id)
);
CREATE INDEX ix_jobs_created ON jobs (created);
CREATE INDEX ix_jobs_state ON jobs (state);
CREATE TABLE branches (
	branch INTEGER NOT NULL,
	parent INTEGER NOT NULL,
	from_step BIGINT NOT NULL,
	reason TEXT NOT NULL,
	created TEXT NOT NULL,
	PRIMARY KEY (branch)
);
CREATE TABLE journal (
	branch INTEGER NOT NULL,
	step BIGINT NOT NULL,
	job TEXT NOT NULL,
	dataset TEXT NOT NULL,
	loss FLOAT NOT NULL,
	components JSON NOT NULL,
	learning_rate FLOAT NOT NULL,
	grad_norm FLOAT NOT NULL,
	tokens BIGINT NOT NULL,
	loss_tokens BIGINT NOT NULL,
	examples BIGINT NOT NULL,
	seconds FLOAT NOT NULL,
	joules FLOAT,
	fingerprint TEXT NOT NULL,
	created TEXT NOT NULL,
	token_entropy FLOAT,
	PRIMARY KEY (branch, step)
);
CREATE TABLE samples (
	id INTEGER NOT NULL,
	branch INTEGER NOT NULL,
	step BIGINT NOT NULL,
	prompt TEXT NOT NULL,
	gold TEXT NOT NULL,
	answer TEXT NOT NULL,
	matched BOOLEAN NOT NULL,
	created TEXT NOT NULL,
	PRIMARY KEY (id)
);
CREATE TABLE evaluations (
	id TEXT NOT NULL,
	ref TEXT NOT NULL,
	weights_hash TEXT NOT NULL,
	step BIGINT,
	verdict TEXT,
	decision TEXT,
	created TEXT NOT NULL,
	PRIMARY KEY (id)
);
CREATE INDEX ix_evaluations_weights_hash ON evaluations (weights_hash);
CREATE TABLE versions (
	number INTEGER NOT NULL,
	weights_hash TEXT NOT NULL,
	created TEXT NOT NULL,
	PRIMARY KEY (number)
);
CREATE TABLE aliases (
	name TEXT NOT NULL,
	version TEXT NOT NULL,
	previous TEXT,
	updated TEXT NOT NULL,
	PRIMARY KEY (name)
);
CREATE TABLE control (
	name TEXT NOT NULL,
	command TEXT NOT NULL,
	free BOOLEAN NOT NULL,
	requested TEXT NOT NULL,
	PRIMARY KEY (name)
);
CREATE TABLE events (
	id INTEGER NOT NULL,
	kind TEXT NOT NULL,
	text TEXT NOT NULL,
	data JSON NOT NULL,
	created TEXT NOT NULL,
	PRIMARY KEY (id)
);
CREATE INDEX ix_events_kind ON events (kind);
