"""`stoke suites`: what a home is judged on, and what is wrong with it."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption
from stokehold.cli.output import emit, table, when
from stokehold.core.errors import NotFoundError
from stokehold.core.records import Sample, SuiteState
from stokehold.evaluation.canaries import examine
from stokehold.evaluation.judging import JUDGE
from stokehold.evaluation.scorers import has_gold, scorer_name
from stokehold.evaluation.suite_files import read_suite
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.judged.suites import builtin_of, frozen_builtins, hash_of, history, read_suite_file, suite_names

HASH_CHARS = 12
"""Of a hash, as a table shows it."""


def add_to(app: typer.Typer) -> None:
    app.command()(suites)


def suites(home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Lists suites with their content's hash, items, scorers, and what is wrong with them."""
    home = Home.open(home_path)
    names = {*suite_names(home), *frozen_builtins(home), *home.config().evaluation.suites}
    judged, judge = history(home, connect(home)), home.config().judge
    asks = bool(judge.url and judge.model)
    found = [_entry(home, name, judged.get(name, {}), asks) for name in sorted(names)]
    if not emit(found, as_json):
        table(("suite", "content", "items", "scorers", "judged since", "state"), [_row(one) for one in found])


def _entry(home: Home, name: str, versions: Mapping[str, str], asks: bool) -> dict[str, Any]:
    """What scripts rely on. `unscorable` counts items that no answer can score; `versions` are contents judged;
    `asks`: there is a judge to ask, and what it will say is not known here."""
    entry: dict[str, Any] = {"suite": name, "hash": None, "items": 0, "unscorable": 0, "scorers": [], "reason": None}
    entry["versions"] = [{"hash": digest, "judged": since} for digest, since in versions.items()]
    try:
        content = read_suite_file(home, name)
    except NotFoundError as error:
        if (builtin := builtin_of(home, name)) is not None:
            reason = "built in, and made when it is first judged on"
            return entry | {"items": builtin.count, "state": SuiteState.OK.value, "reason": reason}
        return entry | {"state": SuiteState.BROKEN.value, "reason": str(error)}
    items = read_suite(content, f"suites/{name}.jsonl")
    samples = items.samples
    health = examine([one for one in samples if not (asks and scorer_name(one) == JUDGE and has_gold(one))])
    faults = {**health.contradicted, **health.unscorable}
    fault = items.fault or health.dead or _nothing_scored(samples, health.unscorable)
    told = fault or next(iter(faults.values()), None)
    state = SuiteState.BROKEN if fault else SuiteState.OK if samples else SuiteState.NO_DATA
    scorers = sorted({"likelihood" if sample.text is not None else scorer_name(sample) for sample in samples})
    facts = {"hash": hash_of(content), "items": len(samples), "unscorable": len(faults), "scorers": scorers}
    return entry | facts | {"state": state.value, "reason": told}


def _nothing_scored(samples: Sequence[Sample], unscorable: Mapping[int, str]) -> str | None:
    """What an evaluation would say of a suite in which no item can be scored; plain text is read all the same."""
    if not samples or len(unscorable) < len(samples):
        return None
    return f"nothing could be scored: {next(iter(unscorable.values()))}"


def _row(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    digest, versions = entry["hash"], entry["versions"]
    since = next((when(one["judged"]) for one in versions if one["hash"] == digest), None)
    state = entry["state"]
    if entry["reason"] is not None:
        which = f", {entry['unscorable']} cannot be scored" if entry["unscorable"] and state == "ok" else ""
        state += f"{which}: {entry['reason']}"
    return entry["suite"], digest and digest[:HASH_CHARS], entry["items"], ", ".join(entry["scorers"]), since, state
