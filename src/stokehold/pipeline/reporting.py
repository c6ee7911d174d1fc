"""A comparison as files: the page and the table, from what is stored. No model is loaded."""

from collections.abc import Iterable
from pathlib import Path

from stokehold.core.records import Comparison, Evaluation, Sample
from stokehold.evaluation.report.content import Report, make_report
from stokehold.evaluation.report.markdown import markdown
from stokehold.evaluation.report.page import page
from stokehold.pipeline.readings import stored_rows
from stokehold.pipeline.suites import open_suite
from stokehold.store.files import utc_now, write_atomic
from stokehold.store.home import Home
from stokehold.store.judged.suites import suite_names


def report_on(home: Home, names: tuple[str, str], a: Evaluation, b: Evaluation, comparison: Comparison) -> Report:
    """The report on B against A, `names` as they were asked for; NotFoundError where the items of one are gone."""
    samples = samples_of(home, {*a.suites} & {*b.suites})
    return make_report(names, (a, b), comparison, (stored_rows(home, a), stored_rows(home, b)), samples, utc_now())


def write_report(report: Report, html: Path | None = None, table: Path | None = None) -> None:
    """Writes the page and the Markdown table, each whole or not at all."""
    if html:
        write_atomic(html.absolute(), page(report).encode())
    if table:
        write_atomic(table.absolute(), markdown(report).encode())


def samples_of(home: Home, names: Iterable[str]) -> dict[tuple[str, str], Sample]:
    """Items of those suites that are still there, by suite and id; an id is that of its content."""
    there = set(suite_names(home))
    suites = [open_suite(home, name) for name in sorted(names) if name in there]
    return {(suite.name, sample.id): sample for suite in suites for sample in suite.samples}
