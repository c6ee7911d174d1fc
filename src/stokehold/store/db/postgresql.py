"""PostgreSQL's own client programs, for copies of a database that lies on a server."""

import os
import shutil
import subprocess
from pathlib import Path

import sqlalchemy as sa

from stokehold.core.errors import DiskFullError, StokeholdError


def dump_postgresql(url: str, target: Path) -> None:
    """Writes one moment of the database to a file that `pg_restore` reads; holds up no writer."""
    run_client("pg_dump", url, "--format=custom", "--no-owner", "--no-acl", f"--file={target}")


def run_client(program: str, url: str, *arguments: str) -> None:
    """Runs a PostgreSQL client; the password goes by the environment, which other users cannot read."""
    parsed = sa.make_url(url)
    place = parsed.render_as_string(hide_password=True)
    if (path := shutil.which(program)) is None:
        raise StokeholdError(f"{program} is not installed", place, "install PostgreSQL's client programs")
    options = {"--host": parsed.host or parsed.query.get("host"), "--port": parsed.port, "--username": parsed.username}
    given = [f"{name}={value}" for name, value in options.items() if value]
    environment = {**os.environ, **({"PGPASSWORD": str(parsed.password)} if parsed.password else {})}
    command = [path, *given, "--no-password", f"--dbname={parsed.database}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        if "No space left" in done.stderr:
            raise DiskFullError(f"no space left for {program}", place, "make room")
        said = done.stderr.strip().splitlines()
        raise StokeholdError(f"{program} failed: {said[-1] if said else 'it said nothing'}", place, "see its message")
