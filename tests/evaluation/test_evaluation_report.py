"""The report page and table: what they count, that no text does anything, and that a browser shows them."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from browsing import chromium
from stokehold.core.records import Comparison, Evaluation, Message, Sample, Verdict
from stokehold.evaluation.metrics import wilson
from stokehold.evaluation.readings.answers import answer_of, item_reading
from stokehold.evaluation.report.content import HISTOGRAM_BARS, NARROWEST, SHOWN, Report, histogram, make_report
from stokehold.evaluation.report.markdown import HEAD, markdown
from stokehold.evaluation.report.page import MAX_TEXT, PICTURES, differing, page, ticks, visible
from stokehold.evaluation.verdict import compare

CONDITIONS = {"template": "3f9a", "engine": "greedy-1", "max_new_tokens": "64"}
HOSTILE = (
    "<script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "</pre></main></body><iframe src='https://example.com'></iframe>",
    "{{ 7 * 191 }} {% include 'page.css' %}",
    "\x00\x1b[31m\u202eevil",
    "x" * (MAX_TEXT + 17),
)


def evaluation(ref: str, **facts: Any) -> Evaluation:
    made = Evaluation(f"{ref}-id", ref, "0a" * 32, "how-what", {}, 4.0, "", "2026-11-21T10:00:00+00:00")
    return replace(made, conditions=CONDITIONS, **facts)


def row(suite: str, number: int, text: str, right: bool, nll: float, level: Any = None, **facts: Any) -> dict[str, Any]:
    logprob = -0.1 if right else -0.7
    return {
        "suite": suite,
        "sample_id": f"{number:016x}",
        "level": level,
        "text": text,
        "token_ids": [1, 2],
        "token_logprobs": [logprob, logprob / 2],
        "finish_reason": "stop",
        "gold_nll": nll,
        "gold_tokens": 4,
        "score": float(right),
        "parts": {},
        "reason": None,
        "tie": False,
        **facts,
    }


def report(
    a: Sequence[dict[str, Any]],
    b: Sequence[dict[str, Any]],
    names: tuple[str, str] = ("base", "champion"),
    **facts: Any,
) -> Report:
    def readings(rows: Sequence[dict[str, Any]]) -> list[Any]:
        return [replace(item_reading(answer_of(one)), suite=one["suite"]) for one in rows]

    samples = {
        (one["suite"], one["sample_id"]): Sample(
            one["sample_id"], (Message("user", f"question {one['sample_id']}"), Message("assistant", "gold"))
        )
        for one in a
    }
    comparison = compare(readings(a), readings(b), 0.02)
    made = (evaluation(names[0]), evaluation(names[1], **facts))
    return make_report(names, made, comparison, (a, b), samples, "2026-11-21T11:00:00+00:00")


@pytest.fixture(scope="module")
def two_suites() -> Report:
    """`facts`: 30 items, A has 10 right, B those but one and 15 more. `hard`: 20 items on two levels, 4 and 4 right."""
    a = [row("facts", i, "gold" if i < 10 else "wrong", i < 10, 1.0) for i in range(30)]
    b = [row("facts", i, "gold" if 1 <= i < 25 else "other", 1 <= i < 25, 0.5 + i / 100) for i in range(30)]
    a += [row("hard", i, "gold" if i < 4 else "wrong", i < 4, 2.0, 7 + i % 2) for i in range(20)]
    b += [row("hard", i, "gold" if i < 4 else "wrong", i < 4, 2.0, 7 + i % 2, tie=i == 3) for i in range(20)]
    return report(a, b, seconds=2.0, tokens=90, joules=45.0)


class Page(HTMLParser):
    """Tags with their attributes, and the text outside `<style>`."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._said: list[str] = []
        self._styled = False
        self.feed(content)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._said).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._styled = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._styled = False

    def handle_data(self, data: str) -> None:
        if not self._styled:
            self._said.append(data)


def test_gained_lost_and_shares_are_those_of_the_items(two_suites: Report) -> None:
    assert [item.sample_id for item in two_suites.lost] == [f"{0:016x}"]
    assert [item.sample_id for item in two_suites.gained] == [f"{i:016x}" for i in range(10, 25)]
    found = {(one.suite, one.level): (one.a.right, one.b.right, one.a.n) for one in two_suites.accuracy}
    assert found == {
        ("facts", None): (10, 24, 30),
        ("hard", None): (4, 4, 20),
        ("hard", 7): (2, 2, 10),
        ("hard", 8): (2, 2, 10),
    }
    assert two_suites.suites[0].b.interval == wilson(24, 30)
    assert [item.suite for item in two_suites.ties] == ["hard"]
    assert two_suites.likelihood is not None
    changed = (two_suites.likelihood.likelier, two_suites.likelihood.same, two_suites.likelihood.less_likely)
    assert changed == (30, 20, 0)
    assert sum(bar.n for bar in two_suites.likelihood.bars) == 50
    assert two_suites.calibration is not None
    assert [one.n for one in two_suites.calibration] == [50, 50]
    assert [one.accuracy for one in two_suites.calibration] == [14 / 50, 28 / 50]


def test_the_page_tells_the_verdict_and_says_unknown_where_nothing_was_measured(two_suites: Report) -> None:
    text = Page(page(two_suites)).text
    assert "champion is better than base" in text
    assert "15 gained, 1 lost" in text
    assert "80.0 %" in text
    assert re.search(r"generated tokens unknown 90 ", text)
    assert re.search(r"tokens per second unknown 45 ", text)
    assert re.search(r"joules unknown 45 joules per token unknown 0.5 ", text)
    assert "Alike in everything." in text
    assert "facts" in text
    assert f"hard/{3:016x}" in text


def test_one_wrong_answer_of_many_is_seen() -> None:
    a = [row("facts", i, "gold", i > 0, 1.0) for i in range(2500)]
    made = report(a, a)
    assert "| 2500 | 99.9 % | 99.9 % |" in markdown(made)
    assert "99.9 % → 99.9 %" in Page(page(made)).text


def test_conditions_that_differ_are_marked_and_come_first(two_suites: Report) -> None:
    other = replace(two_suites, b=replace(two_suites.b, conditions={**CONDITIONS, "engine": "greedy-2"}))
    found = Page(page(other))
    assert [attributes for tag, attributes in found.tags if tag == "tr" and attributes] == [{"class": "differs"}]
    assert "engine greedy-1 greedy-2 template 3f9a" in found.text


def test_more_items_than_are_shown_are_counted() -> None:
    a = [row("facts", i, "wrong", False, 1.0) for i in range(SHOWN + 9)]
    b = [row("facts", i, "gold", True, 0.5) for i in range(SHOWN + 9)]
    found = Page(page(report(a, b)))
    assert sum(tag == "details" for tag, _ in found.tags) == SHOWN
    assert f"Gained {SHOWN + 9}, the first {SHOWN} shown" in found.text


def test_without_words_likelihoods_or_scores_the_page_says_what_is_missing() -> None:
    def thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: one[key] for key in ("suite", "sample_id", "score", "gold_nll", "gold_tokens")} for one in rows]

    a = [row("facts", i, "wrong", False, 1.0) for i in range(12)]
    b = [row("facts", i, "gold", True, 0.5) for i in range(12)]
    old = report(thinned(a), thinned(b))
    assert old.calibration is None
    assert "this answer is no longer kept" in Page(page(old)).text
    bare = [{**one, "score": None, "gold_nll": None, "gold_tokens": None} for one in a]
    empty = report(bare, bare)
    assert empty.comparison.verdict is Verdict.INCONCLUSIVE
    assert (empty.accuracy, empty.likelihood) == ((), None)
    assert "It cannot be told whether champion is better than base" in Page(page(empty)).text
    broken = replace(old, comparison=Comparison(Verdict.BROKEN, 0, reason="judged in different ways: engine"))
    assert "judged in different ways: engine" in Page(page(broken)).text
    assert "BROKEN" in markdown(broken)


PLACES = ("text", "suite", "name", "reason")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_hostile_text_becomes_part_of_the_page(text: str, place: str) -> None:
    harmless_with(text, place)


@settings(max_examples=25)
@given(st.text(max_size=60), st.sampled_from(PLACES))
def test_no_text_becomes_part_of_the_page(text: str, place: str) -> None:
    harmless_with(text, place)


def harmless_with(text: str, place: str) -> None:
    """Asserts that a page with this text in this place has no tag and no attribute that one without it has not."""
    name = text if place == "suite" else "facts"
    ours = text if place == "text" else "wrong"
    why = text if place == "reason" else None
    a = [row(name, 1, ours, False, 1.0, reason=why), row(name, 2, "gold", True, 1.0)]
    b = [row(name, 1, "gold", True, 0.5), row(name, 2, ours, False, 0.5)]
    plain = [{**one, "suite": "facts", "text": "x", "reason": why and "y"} for one in a]
    harmless = Page(page(report(plain, [{**one, "reason": None} for one in plain])))
    found = Page(page(report(a, b, ("base", text) if place == "name" else ("base", "champion"))))
    allowed = {tag for tag, _ in harmless.tags} | {
        "p",
        "mark",
        "details",
        "summary",
        "pre",
        "div",
        "h3",
        "code",
        "rect",
    }
    assert {tag for tag, _ in found.tags} <= allowed
    assert not {"script", "img", "iframe", "a", "link", "object", "form"} & allowed
    for _, attributes in found.tags:
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "href", "srcset", "action")]
    assert "1337" not in found.text


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=40))
def test_every_item_is_in_one_bar_and_one_bar_is_around_zero(changes: list[float]) -> None:
    bars = histogram(np.array(changes))
    if not bars:
        assert max(*changes, 0) - min(*changes, 0) < NARROWEST
        return
    assert sum(bar.n for bar in bars) == len(changes)
    assert sum(bar.low < 0 < bar.high for bar in bars) == 1
    assert HISTOGRAM_BARS - 1 <= len(bars) <= HISTOGRAM_BARS + 1
    inside = next(bar for bar in bars if bar.low < 0 < bar.high)
    assert inside.n >= sum(change == 0 for change in changes)


@given(st.text(), st.text())
def test_what_differs_is_taken_out_of_the_text_and_the_rest_is_the_golds(text: str, gold: str) -> None:
    start, own, end = differing(text, gold)
    assert start + own + end == text
    assert gold.startswith(start)
    assert gold.endswith(end)
    assert len(start) + len(end) <= len(gold)
    assert own != "" or start + end == text
    assert differing(gold, gold) == (gold, "", "")


@given(st.text())
def test_visible_text_has_no_character_that_does_something(text: str) -> None:
    shown = visible(text + "".join(map(chr, PICTURES)))
    assert not {chr(code) for code in PICTURES} & set(shown)


@given(st.floats(1e-6, 1e6))
def test_ticks_are_few_lie_inside_and_have_zero_among_them(reach: float) -> None:
    found = ticks(-reach, reach)
    assert 0 in found
    assert 3 <= len(found) <= 7
    assert all(-reach * 1.0001 <= tick <= reach * 1.0001 for tick in found)


def test_the_table_has_a_row_for_each_suite_and_one_for_all(two_suites: Report) -> None:
    lines = markdown(two_suites).splitlines()
    assert lines[0].startswith("BETTER: champion is better than base.")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == list(HEAD)
    assert [cells[0] for cells in rows[2:]] == ["facts", "hard", "all"]
    assert {len(cells) for cells in rows} == {len(HEAD)}
    assert rows[2][1:4] == ["30", "33.3 %", "80.0 %"]
    assert rows[4][1:4] == ["50", "28.0 %", "56.0 %"]
    assert rows[4][6] == "BETTER"
    assert re.fullmatch(r"\+28\.0 \[[+−][\d.]+, \+[\d.]+\]", rows[4][4])


def test_a_name_cannot_break_the_table(two_suites: Report) -> None:
    named = replace(two_suites, names=("a|b\n| x |", "<b>*c*</b>"))
    lines = markdown(named).splitlines()
    assert sum(line.startswith("|") for line in lines) == 5
    assert r"\<b\>\*c\*\</b\> is better than a\|b \| x \|" in lines[0]


@pytest.mark.browser
def test_in_a_browser_it_fits_every_width_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    a = [row("facts", i, HOSTILE[i % len(HOSTILE)], False, 1.0 + i / 50, i % 3) for i in range(40)]
    b = [row("facts", i, "gold", True, 1.0 - i / 90, i % 3) for i in range(40)]
    path = tmp_path / "report.html"
    path.write_text(page(report(a, b)))
    with chromium() as browser:
        for width in (390, 1280):
            opened = browser.new_page(viewport={"width": width, "height": 800})
            asked: list[str] = []
            faults: list[str] = []
            opened.on("request", lambda request, asked=asked: asked.append(request.url))
            opened.on("console", lambda message, faults=faults: faults.append(message.text))
            opened.goto(path.as_uri())
            assert opened.locator("summary").count() == 40
            first = opened.locator("details").first
            assert not first.locator("pre").first.is_visible()
            first.locator("summary").click()
            assert first.locator("pre").first.is_visible()
            assert opened.evaluate("document.documentElement.scrollWidth") == width
            assert opened.title() == "base and champion: BETTER"
            assert (asked, faults) == ([path.as_uri()], [])
            boxes = opened.locator("svg circle.dot")
            assert boxes.count() >= 8
            opened.close()
