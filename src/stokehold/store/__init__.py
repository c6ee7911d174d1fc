"""Everything that survives a restart: files with their manifests, the database, the durable jobs. No torch.

Here lie the home, the disk and how folders are published; in `db` the database, in `models` bases, checkpoints and
versions, in `judged` suites and evaluations, in `backup` snapshots, in `housekeeping` what may go, in `transfer` the
way to other machines.
"""
