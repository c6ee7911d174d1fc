"""Arithmetic, syllogism, deduction, sequence, primitives: the answers are right, and no other answer is."""

import json
from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations, product
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stokehold.core.records import Sample
from stokehold.tasks import knights, ordering
from stokehold.tasks.arithmetic import Arithmetic, carries, parse_number, value_of
from stokehold.tasks.clues import words_from
from stokehold.tasks.deduction import Deduction
from stokehold.tasks.lexicon import lexicon
from stokehold.tasks.models import counter_model, holds, is_counter_model, negation
from stokehold.tasks.primitives import Primitives
from stokehold.tasks.sequence import NumberSequence
from stokehold.tasks.sequence_rules import continuations
from stokehold.tasks.syllogism import Syllogism

PLACES = st.tuples(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(1, 10))


# Arithmetic


@pytest.mark.parametrize(
    ("tree", "value"),
    [
        ("12", 12),
        (["+", "1/2", "1/3"], Fraction(5, 6)),
        (["-", "3", ["*", "4", "5"]], -17),
        (["÷", ["+", "1", "2"], "9"], Fraction(1, 3)),
    ],
)
def test_a_tree_has_its_value(tree: Any, value: Fraction) -> None:
    assert value_of(tree) == value


@pytest.mark.parametrize(
    "tree", ["1/0", "1e3", "", "__import__", ["÷", "1", "0"], ["^", "1", "2"], ["+", "1"], None, 3]
)
def test_a_malformed_tree_has_none(tree: Any) -> None:
    with pytest.raises(ValueError, match=r"not a|no value"):
        value_of(tree)


def test_a_tree_deeper_than_any_of_ours_is_refused() -> None:
    tree: Any = "1"
    for _ in range(5000):
        tree = ["+", tree, "1"]
    with pytest.raises(ValueError, match="not an expression"):
        value_of(tree)


@given(st.fractions())
def test_a_printed_fraction_is_read_back(number: Fraction) -> None:
    assume(len(str(abs(number.numerator))) <= 60)
    assert parse_number(str(number)) == number


@pytest.mark.parametrize("text", ["٣", "1_000", " 1", "+1", "1.0", "1/2/3", "--1", "1/-2", "½", "9" * 61])
def test_other_spellings_of_numbers_are_not_read(text: str) -> None:
    assert parse_number(text) is None


@settings(max_examples=40, deadline=None)
@given(PLACES)
def test_only_the_value_in_lowest_terms_is_exact(place: tuple[int, int, int]) -> None:
    sample = Arithmetic().generate(*place)
    wanted = value_of(sample.metadata["expression"])
    assert Arithmetic().verify(sample, f" {wanted}\n").exact
    for other in (wanted + 1, -wanted or Fraction(1), wanted + Fraction(1, 7)):
        assert Arithmetic().verify(sample, str(other)).value == 0.0
    unreduced = f"{wanted.numerator * 2}/{wanted.denominator * 2}"
    score = Arithmetic().verify(sample, unreduced)
    assert (score.value, score.parts["equal"]) == (0.0, 1.0)


def test_columns_carry() -> None:
    assert [carries(a, b) for a, b in ((12, 34), (19, 1), (99, 1), (5, 5), (0, 0))] == [0, 1, 2, 1, 0]
    for index in range(60):
        _, left, right = Arithmetic().generate(0, index, 1).metadata["expression"]
        assert carries(int(left), int(right)) == 0


def test_sides_of_a_sum_may_be_exchanged_and_those_of_a_difference_not() -> None:
    def identity(tree: Any) -> str:
        return Arithmetic().identity(Sample(id="x", metadata={"expression": tree}))

    assert identity(["+", "1", ["*", "2", "3"]]) == identity(["+", ["*", "3", "2"], "1"])
    assert identity(["-", "1", "2"]) != identity(["-", "2", "1"])


# Syllogism

STATEMENTS = st.tuples(st.sampled_from("AEIO"), st.permutations("abc")).map(lambda s: [s[0], *s[1][:2]])
KINDS = [frozenset(group) for size in range(4) for group in combinations("abc", size)]
EVERY_MODEL = [[kind for kind, here in zip(KINDS, mask, strict=True) if here] for mask in product((0, 1), repeat=8)]


@settings(max_examples=150, deadline=None)
@given(st.lists(STATEMENTS, min_size=1, max_size=3), STATEMENTS)
def test_the_search_agrees_with_trying_all_256_models(premises: list[list[str]], conclusion: list[str]) -> None:
    found = counter_model(premises, conclusion)
    exists = any(is_counter_model(premises, conclusion, model) for model in EVERY_MODEL)
    assert (found is not None) == exists
    assert found is None or is_counter_model(premises, conclusion, found)


@given(STATEMENTS, st.sampled_from(EVERY_MODEL))
def test_a_statement_or_its_negation_holds(statement: list[str], model: list[frozenset[str]]) -> None:
    assert holds(statement, model) != holds(negation(statement), model)


@pytest.mark.parametrize(
    ("premises", "conclusion", "valid"),
    [
        (["A m p", "A s m"], "A s p", True),  # Barbara
        (["E m p", "A s m"], "E s p", True),  # Celarent
        (["A m p", "I s m"], "I s p", True),  # Darii
        (["E m p", "I s m"], "O s p", True),  # Ferio
        (["A p m", "O s m"], "O s p", True),  # Baroco
        (["A m p", "A m s"], "I s p", False),  # Darapti needs somebody in m
        (["A p m", "A s m"], "A s p", False),  # undistributed middle
        (["A m p", "A s m"], "I s p", False),  # Barbari needs somebody in s
    ],
)
def test_the_textbook_forms(premises: list[str], conclusion: str, valid: bool) -> None:
    assert (counter_model([p.split() for p in premises], conclusion.split()) is None) == valid


@settings(max_examples=60, deadline=None)
@given(PLACES)
def test_an_argument_is_answered_by_its_verdict_and_any_counter_model(place: tuple[int, int, int]) -> None:
    family, sample = Syllogism(), Syllogism().generate(*place)
    gold = json.loads(sample.gold)
    opposite = {"valid": not gold["valid"]}
    assert family.verify(sample, json.dumps(opposite)).value == 0.0
    assert family.verify(sample, json.dumps({**opposite, "model": []})).value == 0.0
    assert family.verify(sample, json.dumps({**gold, "note": 1})).value == 0.0
    if "model" in gold:
        larger = {"valid": False, "model": [*gold["model"], *gold["model"][:1], []]}
        assert family.verify(sample, json.dumps(larger)).exact
        assert family.verify(sample, json.dumps({"valid": False})).value == 0.0
        nobody = family.verify(sample, '{"valid":false,"model":[]}')
        assert nobody.parts["verdict"] == 1.0
        conclusion, premises = sample.metadata["conclusion"], sample.metadata["premises"]
        assert nobody.exact == is_counter_model(premises, conclusion, [])


def test_both_verdicts_come_equally_often() -> None:
    for level in (1, 5, 10):
        valid = sum(json.loads(Syllogism().generate(0, index, level).gold)["valid"] for index in range(200))
        assert 70 <= valid <= 130


def test_an_argument_is_the_same_in_any_order_of_its_premises() -> None:
    sample = Syllogism().generate(0, 0, 8)
    turned = [[s[0], s[2], s[1]] if s[0] in "EI" else s for s in sample.metadata["premises"][::-1]]
    other = Sample(id="x", metadata={**sample.metadata, "premises": turned})
    assert Syllogism().identity(other) == Syllogism().identity(sample)
    changed = [["O", *s[1:]] for s in sample.metadata["premises"]]
    assert Syllogism().identity(Sample(id="x", metadata={**sample.metadata, "premises": changed})) != (
        Syllogism().identity(sample)
    )


# Deduction


@settings(max_examples=40, deadline=None)
@given(PLACES)
def test_a_deduction_has_one_solution(place: tuple[int, int, int]) -> None:
    family, sample = Deduction(), Deduction().generate(*place)
    people, clues, gold = sample.metadata["people"], sample.metadata["clues"], json.loads(sample.gold)
    if sample.metadata["kind"] == "line":
        possible = [order for order in permutations(people) if all(ordering.is_true(clue, order) for clue in clues)]
        assert possible == [tuple(gold)]
        others: list[Any] = [gold[::-1], gold[:-1], [*gold, gold[0]], [*gold[:-1], gold[0]], [*gold[:-1], None]]
    else:
        roles = {person: {"knight": True, "knave": False}[role] for person, role in gold.items()}
        assert knights.ways(people, clues) == [roles]
        first = people[0]
        flipped = "knave" if gold[first] == "knight" else "knight"
        others = [{**gold, first: flipped}, {**gold, first: 1}, {**gold, first: []}, {**gold, "Zoe": "knight"}]
    for other in others:
        assert family.verify(sample, json.dumps(other)).value == 0.0
    assert family.verify(sample, json.dumps(gold, indent=2)).exact


def test_both_kinds_of_deduction_come() -> None:
    kinds = Counter(Deduction().generate(0, index, 3).metadata["kind"] for index in range(100))
    assert min(kinds["line"], kinds["island"]) >= 30


@pytest.mark.parametrize(
    ("clue", "expected"),
    [
        (["before", "a", "c"], True),
        (["next", "a", "c"], False),
        (["next", "b", "a"], False),
        (["beside", "b", "a"], True),
        (["between", "d", "a", 2], True),
        (["between", "a", "d", 1], False),
        (["at", "b", 2], True),
        (["not_at", "b", 2], False),
    ],
)
def test_clues_about_a_line(clue: list[Any], expected: bool) -> None:
    assert ordering.is_true(clue, ("a", "b", "c", "d")) == expected


@pytest.mark.parametrize(
    ("saying", "expected"),
    [
        (["is", "a", True], True),
        (["is", "b", True], False),
        (["same", "a", "b"], False),
        (["differ", "a", "b"], True),
        (["or", "a", False, "b", False], True),
        (["or", "a", True, "b", False], True),
        (["or", "a", False, "b", True], False),
        (["and", "a", True, "b", True], False),
        (["count", 1], True),
    ],
)
def test_sayings_of_knights_and_knaves(saying: list[Any], expected: bool) -> None:
    assert knights.is_true(saying, {"a": True, "b": False}) == expected


def test_a_deduction_is_the_same_in_any_order_of_its_clues() -> None:
    for index in range(12):
        sample = Deduction().generate(3, index, 7)
        metadata = dict(sample.metadata)
        turned = {"clues": metadata["clues"][::-1], "people": metadata["people"][::-1]}
        assert Deduction().identity(Sample(id="x", metadata={**metadata, **turned})) == Deduction().identity(sample)


# Sequence


@settings(max_examples=60, deadline=None)
@given(PLACES)
def test_a_sequence_goes_on_in_one_way(place: tuple[int, int, int]) -> None:
    family, sample = NumberSequence(), NumberSequence().generate(*place)
    wanted = json.loads(sample.gold)
    assert continuations(sample.metadata["terms"], len(wanted)) == {tuple(wanted)}
    last = wanted[-1]
    for other in ([*wanted[:-1], last + 1], [*wanted, 0], wanted[:-1], [*wanted[:-1], float(last)], str(wanted), {}):
        assert family.verify(sample, json.dumps(other)).value == 0.0


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ([1, 2, 3, 4, 5], {(6, 7)}),
        ([1, 2, 4, 8, 16], {(32, 64)}),
        ([1, 1, 2, 3, 5, 8], {(13, 21)}),
        ([1, 4, 9, 16, 25], {(36, 49)}),
        ([5, 9, 8, 12, 11, 15], {(14, 18)}),
        ([1, 10, 2, 20, 3, 30, 4, 40], {(5, 50)}),
        ([3, 1, 4, 1, 5, 9, 2, 6, 5], set()),
        ([7, 7], set()),
    ],
)
def test_rules_that_fit(terms: list[int], expected: set[tuple[int, ...]]) -> None:
    assert continuations(terms, 2) == expected


# Primitives


@settings(max_examples=60, deadline=None)
@given(PLACES)
def test_a_primitive_has_one_answer(place: tuple[int, int, int]) -> None:
    family, sample = Primitives(), Primitives().generate(*place)
    metadata = sample.metadata
    entry = next(entry for entry in lexicon() if entry.word == metadata["word"])
    prompt = sample.question[0].content
    match metadata["kind"]:
        case "count":
            assert sample.gold == str(len(entry.syllables))
            assert f'"{entry.word}"' in prompt
        case "define":
            assert sample.gold == entry.word
            assert entry.definition in prompt
        case _:
            bank = json.loads(prompt[prompt.index("[") : prompt.index("]") + 1])
            assert Counter(bank) == Counter([*entry.syllables, *metadata["herrings"]])
            assert words_from(Counter(bank), len(entry.syllables)) == [entry.word] == [sample.gold]
    assert family.verify(sample, f" {sample.gold.upper()} ").exact
    assert family.verify(sample, sample.gold + "x").value == 0.0


def test_spare_syllables_never_make_a_second_word() -> None:
    # One draw in fifty would: "nev", "er" and "sing" hold "never" and "singer".
    for index in range(700):
        metadata = Primitives().generate(5, index, 3 + index % 3).metadata
        if metadata["kind"] == "assemble":
            syllables = next(entry.syllables for entry in lexicon() if entry.word == metadata["word"])
            assert words_from(Counter([*syllables, *metadata["herrings"]]), len(syllables)) == [metadata["word"]]


def test_all_primitives_come_at_every_level() -> None:
    for level in range(1, 11):
        kinds = Counter(Primitives().generate(0, index, level).metadata["kind"] for index in range(60))
        assert set(kinds) == {"count", "assemble", "define"}
