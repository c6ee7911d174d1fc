"""Our tables. The database holds status and pointers; content lives in files. DBOS keeps its own tables beside them."""

import sqlalchemy as sa

metadata = sa.MetaData()

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""Counting keys: SQLite counts by itself only in a column of type INTEGER."""

schema_version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, nullable=False))

files = sa.Table(
    "files",
    metadata,
    sa.Column("content_hash", sa.String(64), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("dataset", sa.Text),
    sa.Column("submitted", sa.Text, nullable=False),
)
"""Every content ever submitted, once: the key is what refuses a duplicate."""

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("file", sa.Text),
    sa.Column("dataset", sa.Text),
    sa.Column("priority", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("progress", sa.Float, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("last_branch", sa.Integer, nullable=False, server_default="0"),
    sa.Column("last_step", sa.BigInteger),
    sa.Column("error", sa.Text),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("created", sa.Text, nullable=False, index=True),
    sa.Column("updated", sa.Text, nullable=False),
)
"""What `stoke queue` shows. The id is that of the DBOS workflow; (last_branch, last_step) is the newest step that was
there when the job last started or failed."""

branches = sa.Table(
    "branches",
    metadata,
    sa.Column("branch", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("parent", sa.Integer, nullable=False),
    sa.Column("from_step", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
)
"""Goings back: steps after `from_step` of `parent` are no longer what the model went through. Branch 0 has no row."""

journal = sa.Table(
    "journal",
    metadata,
    sa.Column("branch", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("loss", sa.Float, nullable=False),
    sa.Column("components", sa.JSON, nullable=False),
    sa.Column("learning_rate", sa.Float, nullable=False),
    sa.Column("grad_norm", sa.Float, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("loss_tokens", sa.BigInteger, nullable=False),
    sa.Column("examples", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("joules", sa.Float),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("token_entropy", sa.Float),
)

journal_job = sa.Index("journal_job", journal.c.job, journal.c.branch, journal.c.step)
"""Where a file began, without reading the rest of a long run."""

journal_aggregates = sa.Table(
    "journal_aggregates",
    metadata,
    sa.Column("branch", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("first_step", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("last_step", sa.BigInteger, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("job", sa.Text, nullable=False, index=True),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("loss_tokens", sa.BigInteger, nullable=False),
    sa.Column("examples", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("joules", sa.Float),
    sa.Column("joules_steps", sa.Integer, nullable=False),
    sa.Column("loss", sa.Float, nullable=False),
    sa.Column("loss_min", sa.Float, nullable=False),
    sa.Column("loss_max", sa.Float, nullable=False),
    sa.Column("learning_rate", sa.Float, nullable=False),
    sa.Column("grad_norm", sa.Float, nullable=False),
    sa.Column("grad_norm_max", sa.Float, nullable=False),
    sa.Column("token_entropy", sa.Float),
    sa.Column("created", sa.Text, nullable=False),
)
"""Old steps of one job and dataset, at most 100 in a row, as one: sums of what adds up, means of what does not.

`joules` is over the `joules_steps` that were measured; `created` is that of the last step.
"""

sample_totals = sa.Table(
    "sample_totals",
    metadata,
    sa.Column("matched", sa.Boolean, primary_key=True, autoincrement=False),
    sa.Column("samples", sa.BigInteger, nullable=False),
)
"""How many in-training samples were dropped for their age, by whether they matched."""

journal_lost = sa.Table(
    "journal_lost",
    metadata,
    sa.Column("branch", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("dataset", sa.Text, primary_key=True),
    sa.Column("examples", sa.BigInteger, nullable=False),
)
"""Where the database was remade: examples that are in the checkpoint of this step, and whose rows are lost."""

skipped = sa.Table(
    "skipped",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("branch", sa.Integer, nullable=False),
    sa.Column("examples", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.JSON, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
)
"""Groups of batches that spoilt a step and are passed over by their run; `step` is the one it would have been."""

samples = sa.Table(
    "samples",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("branch", sa.Integer, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("gold", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("matched", sa.Boolean, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
)
"""In-training samples: what the model answered to a row it is trained on."""

samples_matched = sa.Index("samples_matched", samples.c.matched)
"""Counts the samples that matched without reading their texts."""

evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("ref", sa.Text, nullable=False),
    sa.Column("weights_hash", sa.Text, nullable=False, index=True),
    sa.Column("step", sa.BigInteger),
    sa.Column("verdict", sa.Text),
    sa.Column("decision", sa.Text),
    sa.Column("created", sa.Text, nullable=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("weights_hash", sa.Text, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
)
"""Every number ever given, so that a deleted version's name is not given again."""

aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("previous", sa.Text),
    sa.Column("updated", sa.Text, nullable=False),
)

pins = sa.Table(
    "pins",
    metadata,
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("created", sa.Text, nullable=False),
)
"""Versions that a person wants kept whatever retention says."""

version_manifests = sa.Table(
    "version_manifests",
    metadata,
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("manifest", sa.JSON, nullable=False),
)
"""What each version was when it was published: where its folder is lost, it is made again from this and the blobs."""

control = sa.Table(
    "control",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("command", sa.Text, nullable=False),
    sa.Column("free", sa.Boolean, nullable=False),
    sa.Column("requested", sa.Text, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False, index=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
)

token_windows = sa.Table(
    "token_windows",
    metadata,
    sa.Column("dataset", sa.Text, primary_key=True),
    sa.Column("window_rows", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("window", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("lengths", sa.JSON, nullable=False),
    sa.Column("trained", sa.BigInteger, nullable=False),
    sa.Column("conversations", sa.BigInteger, nullable=False),
)
"""Token counts of a dataset's windows while it is trained for the first time; they go when its report is written."""

token_reports = sa.Table(
    "token_reports",
    metadata,
    sa.Column("dataset", sa.Text, primary_key=True),
    sa.Column("report", sa.JSON, nullable=False),
    sa.Column("warning", sa.Text),
    sa.Column("examples", sa.JSON, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
)
"""What a dataset's tokens look like, over all its rows; datasets are immutable, and this is known only later."""
