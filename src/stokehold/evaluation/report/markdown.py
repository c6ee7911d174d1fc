"""A `Report` as a table for a paper or an issue, in GitHub's Markdown."""

from collections.abc import Iterable

from stokehold.core.records import Comparison
from stokehold.core.shares import percent
from stokehold.evaluation.report.content import Report, Share
from stokehold.evaluation.report.page import p_value, points, verdict_in_words, visible

HEAD = ("suite", "n", "A", "B", "Δ, points [95 % CI]", "p (Holm)", "verdict")
ALIGNED = ("---", "---:", "---:", "---:", "---:", "---:", "---")
ALL = "all"
DASH = "–"
SPECIAL = "\\`*_[]<>|&~"
"""Characters that Markdown or HTML would read as something else."""


def markdown(report: Report) -> str:
    """The verdict as a sentence, and a row for each suite; with several, one for all together."""
    a, b = report.names
    rows = [
        _row(plain(one.suite), one.a, one.b, report.by_suite[one.suite])
        for one in report.suites
        if one.suite in report.by_suite
    ]
    if len(rows) != 1:
        rows.append(_row(ALL, *_whole(report), report.comparison))
    said = (
        f"{report.comparison.verdict.value}: {plain(verdict_in_words(report))}. {plain(report.comparison.reason or '')}"
    )
    weights = f"A: {plain(a)} ({report.a.weights_hash[:12]}). B: {plain(b)} ({report.b.weights_hash[:12]})."
    lines = [said.rstrip(), "", weights, "", _line(HEAD), _line(ALIGNED), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    shown = " ".join(visible(text).split())
    return "".join(f"\\{one}" if one in SPECIAL else one for one in shown)


def _whole(report: Report) -> tuple[Share, Share]:
    """Both shares over all suites together."""
    suites = report.suites
    n = sum(one.a.n for one in suites)
    return Share(sum(one.a.right for one in suites), n), Share(sum(one.b.right for one in suites), n)


def _row(name: str, a: Share, b: Share, found: Comparison) -> tuple[str, ...]:
    delta = DASH if found.delta_exact is None else points(found.delta_exact)
    if found.delta_exact is not None and found.delta_exact_ci is not None:
        delta += f" [{points(found.delta_exact_ci[0])}, {points(found.delta_exact_ci[1])}]"
    shares = (DASH if one.value is None else percent(one.value) for one in (a, b))
    p = DASH if found.p_adjusted is None else p_value(found.p_adjusted)
    return name, str(found.items), *shares, delta, p, found.verdict.value


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
