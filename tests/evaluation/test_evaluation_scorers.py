"""Scorers: what each takes for right, what it must never take for right, and the ends that are reasons."""

import itertools
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.records import Completion, Message, Sample, Score
from stokehold.data.formats import Parsed, parse_line
from stokehold.data.lines import Line
from stokehold.evaluation.answers import chosen, final_number, first_object
from stokehold.evaluation.canaries import IMPOSSIBLE, examine
from stokehold.evaluation.judging import JUDGE
from stokehold.evaluation.scorers import SCORERS, score, scorer_name
from stokehold.tasks.selftest import WRONG_ANSWERS

ITEMS = {
    "exact": ("blue", {}),
    "contains": ("blue", {"ignore_case": True}),
    "numeric": ("x = 1,234.5 m", {}),
    "choice": ("B", {"choices": ["Rome", "Paris", "Oslo"]}),
    "json_fields": ('{"city": "Oslo", "people": 7e5, "tags": ["a", {"b": null}]}', {}),
    "regex": ("2026-11-21", {"pattern": r"\d{4}-\d\d-\d\d"}),
}
"""An item for each scorer that needs no model."""


def item(scorer: str, gold: str, **metadata: Any) -> Sample:
    turns = (Message("user", "and?"), Message("assistant", gold))
    return Sample(id=f"{scorer}-1", messages=turns, metadata={"scorer": scorer, **metadata})


def judge(sample: Sample, text: str) -> Score:
    return score(sample, Completion(sample.id, text, (1,), (-0.5,), "stop"))


def value(scorer: str, gold: str, text: str, **metadata: Any) -> float | None:
    return judge(item(scorer, gold, **metadata), text).value


def of(scorer: str) -> Sample:
    gold, metadata = ITEMS[scorer]
    return item(scorer, gold, **metadata)


def test_every_scorer_is_tried_here() -> None:
    assert ITEMS.keys() == SCORERS.keys()


ENDLESS = [
    start + piece * 60_000
    for start in ("", "\\boxed{", "The answer is ", "{")
    for piece in (" ", "1", "1 ", "(", "A\n")
]
"""What a careless pattern would take hours for."""


@pytest.mark.parametrize("name", SCORERS)
def test_gold_scores_1_and_whatever_is_no_answer_0_the_same_each_time(name: str) -> None:
    sample = of(name)
    assert judge(sample, sample.gold).value == 1.0
    assert judge(sample, f"\n {sample.gold}\n").value == 1.0
    wrong = [text for texts in WRONG_ANSWERS.values() for text in texts]
    for text in (*wrong, *ENDLESS, IMPOSSIBLE, "x" * 300_000):
        assert judge(sample, text).value == 0.0, text[:40]
        assert judge(sample, text) == judge(sample, text)
    assert examine([sample]).dead is None
    assert examine([sample]).unscorable == {}


ODD = st.text(max_size=60) | st.text("0123456789.,-+−/%eE^{}[]()\":ABCab \n\\\u2013'_$", max_size=60)


@given(st.sampled_from(sorted(SCORERS)), ODD)
def test_any_answer_has_a_value_from_0_to_1_and_no_exception(name: str, text: str) -> None:
    found = judge(of(name), text)
    assert found.value in (0.0, 1.0)
    assert all(0 <= share <= 1 for share in found.parts.values())


OPTIONS = ("choices", "fields", "tolerance", "relative", "pattern", "match", "ignore_case")
JUNK = st.none() | st.booleans() | st.floats() | st.integers() | ODD | st.lists(ODD, max_size=3)


@given(st.sampled_from(sorted(SCORERS)), ODD, ODD, st.dictionaries(st.sampled_from(OPTIONS), JUNK, max_size=4))
def test_any_item_has_a_value_or_a_reason(name: str, gold: str, text: str, options: dict[str, Any]) -> None:
    found = judge(item(name, gold, **options), text)
    assert (found.value is None) == (found.reason is not None)
    assert found.value is None or 0 <= found.value <= 1


NUMBERS = {
    "42": 42,
    "-3.5": Fraction(-7, 2),
    "−7": -7,
    "so it is 1,234.5 m": Fraction("1234.5"),
    "1\u202f234": 1234,
    "$1,234.": 1234,
    ".5": Fraction(1, 2),
    "1e3": 1000,
    "2E-3": Fraction(1, 500),
    "1.5×10^3": 1500,
    r"2 \times 10^{-3}": Fraction(1, 500),
    "3/4 cup": Fraction(3, 4),
    "1 3/4": Fraction(7, 4),
    r"\boxed{2\frac{3}{4}}": Fraction(11, 4),
    "75%": Fraction(3, 4),
    r"75\%": Fraction(3, 4),
    "10-4": 4,
    "x=-4": -4,
    "5 - 3 = 2": 2,
    "first 3, then 12 apples": 12,
    "42 km/h": 42,
    "42 m^2": 42,
    "42 m2": 42,
    "3D": 3,
    "CO2": None,
    "GPT-4": None,
    "a_1": None,
    "no number": None,
    "2^10": None,
    "10^{3}": None,
    "1,23": None,
    "1,2,3": None,
    "1.2.3": None,
    "12:30": None,
    "1/0": None,
    "1/2/2020": None,
    "1e5x": None,
    "1e99999": None,
    "٣": None,
    "9" * 5000: None,
    "5'000": 5000,
    "it is 1\u2019234\u2019567.5 m": Fraction("1234567.5"),
    "12_000": 12000,
    "12_0000": None,
    "5'10": None,
    "['5','6']": 6,
    "12 000": None,
    "1 234 567 km": None,
    "12 000.50": None,
    "between 100 200": None,
    "2020 100": 100,
    "1.5 200": 200,
    "CO2 300": 300,
    "100, then 200": 200,
    r"12\,000": 12000,
    r"1{,}234{,}567": 1234567,
    r"1,\!000": 1000,
    "-$5": -5,
    r"-\$5": -5,
    "$-5": -5,
    "\u2212€1,000": -1000,
    "10-$4": 4,
    "10$-5": 5,
    "\u20135": -5,
    "x = \u20135": -5,
    "\u20115": -5,
    "GPT\u20114": None,
    "3\u20135": 5,
    "3 \u2013 5": 5,
    "10%\u201320%": Fraction(1, 5),
    "10€\u201320€": 20,
    "5 km\u201310 km": 10,
    "1e\u20133": Fraction(1, 1000),
    "1.5×10^{\u20133}": Fraction(3, 2000),
    "10^{-3}": None,
    "10^{\u20133}": None,
    "a_{1}": None,
}


@pytest.mark.parametrize(("text", "number"), NUMBERS.items(), ids=[text[:12] for text in NUMBERS])
def test_the_final_number_of_a_text(text: str, number: Fraction | int | None) -> None:
    assert final_number(text) == number


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=6))
def test_a_decimal_is_read_as_it_is_written(number: Any) -> None:
    assert final_number(f"It is {number:f} kg.") == Fraction(number)
    assert final_number(f"It is {number:,f} kg.") == Fraction(number)


def test_numbers_are_compared_exactly_or_within_the_room_that_is_given() -> None:
    assert value("numeric", "0.3", "0.30") == 1.0
    assert value("numeric", "0.3", "0.30000000000000001") == 0.0, "no float is exact enough"
    assert value("numeric", "0.75", "3/4") == 1.0
    assert value("numeric", "0.75", "75 %") == 1.0
    assert value("numeric", "75", "75 %") == 0.0
    assert value("numeric", "100", "first 100, no: 99") == 0.0
    assert value("numeric", "0.1", "0.4", tolerance=0.3) == 1.0, "0.3 is taken as it is written, not as its float"
    assert value("numeric", "0.1", "0.4000001", tolerance=0.3) == 0.0
    assert value("numeric", "-200", "-202", relative=0.01) == 1.0
    assert value("numeric", "-200", "-202.1", relative="0.01") == 0.0
    assert value("numeric", "1", "none") == 0.0


def test_no_part_of_a_number_is_taken_for_the_whole_of_it() -> None:
    assert value("numeric", "12 000", "99 000") is None, "a gold answer that may be two numbers scores nobody"
    for gold, wrong in (("12000", "99 000"), ("0", "12 000"), ("5'000", "0"), ("-$5", "$5"), ("$5", "-$5")):
        assert value("numeric", gold, wrong) == 0.0, (gold, wrong)
    for gold, right in (("5'000", "5,000"), ("-$5", "-5"), ("-5", "\u20135"), ("5000", r"5\,000")):
        assert value("numeric", gold, right) == 1.0, (gold, right)


@pytest.mark.parametrize("room", [-1, True, "wide", float("nan"), float("inf"), None, [1]])
def test_a_tolerance_that_is_none_is_a_reason(room: Any) -> None:
    found = judge(item("numeric", "1", tolerance=room), "1")
    assert found.value is None
    assert "metadata.tolerance" in str(found.reason)


CHOICES = {"A": "Rome", "B": "Paris", "C": "the dog", "D": "-5"}
CHOSEN = {
    "B": "B",
    " b ": "B",
    "(B)": "B",
    "[B].": "B",
    "**B**": "B",
    "B) Paris": "B",
    "B: paris.": "B",
    "PARIS": "B",
    "Option B": "B",
    "The dog.": "C",
    "-5": "D",
    "The answer is (B).": "B",
    "**Answer:** B) Paris": "B",
    "The correct option is B because it is.": "B",
    "Answer: A\nNo, wait.\nAnswer: B": "B",
    "The answer is B. It is not A.": "B",
    r"so \boxed{B}": "B",
    "Let me think.\n\nB": "B",
    "B\nRome has no tower.": "B",
    "A or B": None,
    "The answer is A or B": None,
    "The answer is B, not A": None,
    "A\nor\nB": None,
    "B) Rome": None,
    "I like Paris": None,
    "A dog": None,
    "the answer is a dog": None,
    "5": None,
    "E": None,
    "": None,
}


@pytest.mark.parametrize(("text", "label"), CHOSEN.items(), ids=[text[:20] for text in CHOSEN])
def test_a_choice_is_committed_to_and_not_just_mentioned(text: str, label: str | None) -> None:
    assert chosen(text, CHOICES) == label


def test_gold_may_be_the_label_or_the_text_and_accents_may_be_composed_or_not() -> None:
    choices = ["Zürich", "Bern"]
    for gold, text in itertools.product(("A", "Zu\u0308rich"), ("A", "Z\u00fcrich", "The answer is Zu\u0308rich.")):
        assert value("choice", gold, text, choices=choices) == 1.0
    assert value("exact", "Zu\u0308rich", "Z\u00fcrich") == 0.0, "exact compares characters as they are"


@pytest.mark.parametrize(
    "choices", [None, [], ["a"], ["a", "A "], ["a", 1], ["a", ""], {"A": "x", "a": "y"}, "AB", list("abcd") * 7]
)
def test_choices_that_are_none_are_a_reason(choices: Any) -> None:
    found = judge(item("choice", "A", choices=choices), "A")
    assert found.value is None
    assert "metadata.choices" in str(found.reason)


def test_json_fields_reads_the_first_object_and_compares_values() -> None:
    gold = '{"a": 1, "b": {"c": [true, null]}, "d": "x"}'
    fenced = 'Here:\n```json\n{ "d":"x", "b":{"c":[true,null]}, "a":1.0, "more": 2 }\n```'
    assert value("json_fields", gold, fenced) == 1.0
    found = judge(item("json_fields", gold), '{"a": true, "b": {"c": [true, null]}, "d": "y"}')
    assert found.value == 0.0
    assert found.parts == {"field:a": 0.0, "field:b": 1.0, "field:d": 0.0}
    assert value("json_fields", gold, '{"a": 2, "d": "x"}', fields=["d"]) == 1.0
    assert value("json_fields", gold, '[{"d": "x"}]', fields=["d"]) == 1.0
    assert value("json_fields", gold, '{"d": "y"} {"d": "x"}', fields=["d"]) == 0.0
    assert value("json_fields", gold, '{"d": "y", "d": "x"}', fields=["d"]) == 0.0, "a key that stands twice"
    for fields in ([], ["z"], "d", [1], None):
        assert value("json_fields", gold, gold, fields=fields) is None
    assert value("json_fields", "no object", gold) is None


@pytest.mark.parametrize("text", ["{" * 200_000, '{"a":' * 30_000, '{"a":NaN}', '{"a":1e' + "9" * 30 + "}", "{'a': 1}"])
def test_what_only_looks_like_json_is_no_object(text: str) -> None:
    assert first_object(text) is None


def test_regex_matches_the_whole_answer_unless_it_is_to_search() -> None:
    options: dict[str, Any] = {"pattern": "[a-c]+"}
    assert value("regex", "abc", " cab\n", **options) == 1.0
    assert value("regex", "abc", "a cab", **options) == 0.0
    assert value("regex", "abc", "a CAB", **options, match="search") == 1.0
    assert value("regex", "abc", "CAB", **options) == 0.0
    assert value("regex", "abc", "CAB", **options, ignore_case=True) == 1.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pattern": "("},
        {"pattern": ""},
        {"pattern": 7},
        {"pattern": "a", "match": 1},
        {"pattern": "a", "ignore_case": 1},
    ],
)
def test_a_pattern_that_is_none_is_a_reason(options: dict[str, Any]) -> None:
    found = judge(item("regex", "a", **options), "a")
    assert found.value is None
    assert str(found.reason).startswith("regex: metadata.")


def test_a_pattern_that_would_never_end_is_unscored() -> None:
    sample = item("regex", "aaaa", pattern=r"(a|a|aa)+$")
    assert judge(sample, "aaaa").value == 1.0
    found = judge(sample, "a" * 200 + "b")
    assert found.value is None
    assert "was not done" in str(found.reason)


def test_contains_and_exact_keep_to_the_characters() -> None:
    assert value("contains", "Blue", "it is blue") == 0.0
    assert value("contains", "Blue", "it is blue", ignore_case=True) == 1.0
    assert value("contains", " ", "anything") is None
    assert value("exact", "blue", "Blue") == 0.0


def test_an_answer_that_did_not_fit_and_a_gold_that_cannot_are_reasons() -> None:
    sample = of("exact")
    long = Completion(sample.id, "blue", (), (), "length", error="prompt and gold answer of 100000 tokens do not fit")
    assert score(sample, long) == Score(None, reason=long.error)
    assert score(Sample("a", (Message("user", "and?"),)), long).reason == "the item has no gold answer"


@pytest.mark.parametrize("named", [["exact"], 7, {"a": 1}, "verifier:", "EXACT"])
def test_a_scorer_that_there_is_not_is_a_reason_that_names_those_there_are(named: Any) -> None:
    found = judge(item(named, "blue"), "blue")
    assert found.value is None
    assert str(named) in str(found.reason) or "family" in str(found.reason)
    assert scorer_name(Sample("a", metadata={"family": ["syllo"]})) == "exact"


def test_the_rows_that_the_document_shows_are_judged_as_it_says() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    section = text.partition("## Scorers\n")[2].partition("\n## ")[0]
    shown = set()
    for row, said in re.findall(
        r"```jsonl\n(.*?)\n```\n\n([^`]*(?:`[^`]+`[^`]*)*?)(?=\*\*|```|\n### )", section, re.DOTALL
    ):
        parsed = parse_line(Line(1, row.encode()), "shown")
        assert isinstance(parsed, Parsed), row
        sample = parsed.sample
        shown.add(scorer_name(sample))
        if scorer_name(sample) == JUDGE:
            continue
        assert examine([sample]).dead is None
        right, wrong = said.split("Wrong:")
        assert "Right:" in right
        for expected, answers in ((1.0, re.findall("`([^`]+)`", right)), (0.0, re.findall("`([^`]+)`", wrong))):
            assert answers
            for answer in answers:
                assert judge(sample, answer).value == expected, (row, answer)
    assert shown == {*SCORERS, JUDGE}
