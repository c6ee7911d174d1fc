"""A `Report` as one HTML file that fetches nothing and runs nothing: no script, no link, styles and drawings inside.

What a model wrote is hostile until proved otherwise: every text is escaped by the template engine, the page's own
policy forbids scripts, control characters are shown as pictures, and long answers are cut with the rest counted.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from stokehold import __version__
from stokehold.core.records import Evaluation, Verdict
from stokehold.core.shares import percent
from stokehold.evaluation.report.content import SHOWN, Report

MAX_TEXT = 4000
"""Characters of one text that a page shows."""

SAID = {
    Verdict.BETTER: "{b} is better than {a}",
    Verdict.WORSE: "{b} is worse than {a}",
    Verdict.EQUIVALENT: "{b} and {a} are equally good",
    Verdict.INCONCLUSIVE: "It cannot be told whether {b} is better than {a}",
    Verdict.BROKEN: "{b} and {a} cannot be compared",
}

PICTURES: Mapping[int, int | str] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    127: 0x2421,
    # Marks that turn the direction of text around would let an answer rewrite what stands beside it.
    **{code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F)},
}
"""Characters that do something, by what is shown for them."""

TICKS = 3
"""Fewest parts that round numbers divide an axis into."""


def page(report: Report) -> str:
    """The whole file."""
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            sides=[("a", report.names[0], report.a), ("b", report.names[1], report.b)],
            verdict=verdict_in_words(report),
            conditions=conditions(report.a, report.b),
            shown=SHOWN,
            version=__version__,
        )
    )


def verdict_in_words(report: Report) -> str:
    """The verdict as a sentence."""
    return SAID[report.comparison.verdict].format(a=report.names[0], b=report.names[1])


def conditions(a: Evaluation, b: Evaluation) -> list[tuple[str, str | None, str | None]]:
    """How each was judged, by name: (name, A's, B's), those that differ first; None where it was not written down."""
    names = {**a.conditions, **b.conditions}
    found = [(name, a.conditions.get(name), b.conditions.get(name)) for name in names]
    return sorted(found, key=lambda row: row[1] == row[2])


def differing(text: str, gold: str | None) -> tuple[str, str, str]:
    """`text` in three: what it begins with as `gold` does, what is its own, what it ends with as `gold` does."""
    if gold is None:
        return text, "", ""
    room = min(len(text), len(gold))
    start = next((i for i in range(room) if text[i] != gold[i]), room)
    end = next((i for i in range(room - start) if text[-1 - i] != gold[-1 - i]), room - start)
    return text[:start], text[start : len(text) - end], text[len(text) - end :]


def visible(text: str) -> str:
    """The text as a page may show it: cut, and with every character that does something shown as itself."""
    return text[:MAX_TEXT].translate(PICTURES)


def left_out(text: str) -> int:
    """Characters that `visible` does not show."""
    return max(0, len(text) - MAX_TEXT)


def ticks(low: float, high: float) -> list[float]:
    """A few round numbers between the ends, zero among them where it lies between."""
    rough = (high - low) / TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    # A logarithm may round up at a power of ten: half of it is the way out.
    step = max(unit * many for many in (0.5, 1, 2, 5) if unit * many <= rough)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def points(delta: float) -> str:
    """A difference of shares in percentage points, signed."""
    return f"{_minus(f'{100 * delta:+.1f}')}"


def nats(delta: float) -> str:
    """A difference of nats per token, signed."""
    return _minus(f"{delta:+.4f}")


def number(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, without an exponent where it would not help."""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def p_value(value: float) -> str:
    """A p value to two significant digits; tiny ones as a bound."""
    return "<0.0001" if value < 1e-4 else f"{value:.2g}"


def per_second(count: float | None, seconds: float) -> float | None:
    """A rate; None where the count is unknown or nothing took time."""
    return count / seconds if count is not None and seconds > 0 else None


def _minus(text: str) -> str:
    return text.replace("-", "−")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("stokehold.evaluation", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    given: Sequence[Any] = (differing, visible, left_out, percent, points, nats, number, p_value, per_second, ticks)
    environment.filters |= {function.__name__: function for function in given}
    return environment
