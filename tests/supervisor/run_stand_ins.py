"""A supervisor over stand-ins: `python run_stand_ins.py HOME TRAINER-SCRIPT WEB-SCRIPT`, words split at commas.

Its longest back-off is short, so that a crash loop is over soon; the real one is tried as arithmetic.
"""

import sys
from pathlib import Path

from stokehold.store.db import jobs
from stokehold.store.home import Home
from stokehold.supervisor import restarts
from stokehold.supervisor.main import Supervisor
from stokehold.supervisor.processes import Role

restarts.LONGEST_DELAY_S = 0.2
home = Home.open(Path(sys.argv[1]))
trainer = Role("trainer", "stand_in", tuple(sys.argv[2].split(",")), {"GIVEN": "to the trainer"}, ("trainer",))
web = Role("web", "stand_in", tuple(sys.argv[3].split(",")), {})
with home.lock("supervisor", "stoke up"), jobs.client(home) as client:
    sys.exit(Supervisor(home, client, (trainer, web)).run())
