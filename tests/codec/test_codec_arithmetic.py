"""Arithmetic: equal within the rules prints equal, the value never changes, infix text means what it says."""

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.codec.arithmetic import value
from stokehold.codec.domains import ARITHMETIC, canonical
from stokehold.codec.infix import parse_infix
from stokehold.codec.problems import problem_tree
from stokehold.codec.sexpr import MAX_DEPTH, CodecError, Form, Number, Tree, render

numbers = st.fractions(-99, 99, max_denominator=9).map(Number)
seeds = st.integers(0, 10**6)


def forms(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    pair = st.tuples(inner, inner)
    return st.one_of(
        st.builds(ARITHMETIC.form, st.sampled_from(["+", "*"]), st.lists(inner, min_size=2, max_size=4).map(tuple)),
        st.builds(ARITHMETIC.form, st.sampled_from(["-", "/"]), pair),
        st.builds(ARITHMETIC.form, st.just("neg"), st.tuples(inner)),
    )


expressions = st.recursive(numbers, forms, max_leaves=12)


def disguised(tree: Tree, rng: random.Random) -> Tree:
    """Another writing of the same expression, by the rules only."""
    if isinstance(tree, Number):
        return Form("neg", (Number(-tree.value),)) if rng.random() < 0.3 else tree
    assert isinstance(tree, Form)
    args = [disguised(arg, rng) for arg in tree.args]
    if tree.op in ("+", "*", "="):
        rng.shuffle(args)
    if tree.op in ("+", "*") and len(args) > 2 and rng.random() < 0.5:
        args = [Form(tree.op, tuple(args[:2])), *args[2:]]
    shown: Tree = Form(tree.op, tuple(args))
    return Form("neg", (Form("neg", (shown,)),)) if tree.op != "=" and rng.random() < 0.3 else shown


@given(expressions, seeds)
def test_equal_within_the_rules_prints_equal(tree: Tree, seed: int) -> None:
    assert ARITHMETIC.canonical(disguised(tree, random.Random(seed))) == ARITHMETIC.canonical(tree)


@given(expressions)
def test_canonical_twice_is_canonical_once(tree: Tree) -> None:
    once = ARITHMETIC.canonical(tree)
    assert ARITHMETIC.canonical(once) == once
    assert ARITHMETIC.parse(render(once)) == once


@given(expressions)
def test_canonical_keeps_the_value(tree: Tree) -> None:
    try:
        worth = value(tree)
    except CodecError:
        with pytest.raises(CodecError, match="division by zero"):
            value(ARITHMETIC.canonical(tree))
        return
    assert value(ARITHMETIC.canonical(tree)) == worth


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("(+ (* 4 (- 2 1)) 3)", "(+ 3 (* 4 (- 2 1)))"),
        ("(+ 10 9 -2)", "(+ -2 9 10)"),
        ("(+ (+ 3 2) (+ 1 0))", "(+ 0 1 2 3)"),
        ("(neg (neg (+ 2 1)))", "(+ 1 2)"),
        ("(neg 5)", "-5"),
        ("(= (+ 2 1) 3)", "(= 3 (+ 1 2))"),
        ("(- 2 1)", "(- 2 1)"),
    ],
)
def test_canonical_examples(text: str, printed: str) -> None:
    assert canonical("arithmetic", text) == printed


@pytest.mark.parametrize(
    ("one", "other"), [("(- 2 1)", "(- 1 2)"), ("(/ 2 1)", "(/ 1 2)"), ("(+ 1 2)", "3"), ("(+ 1 2)", "(* 1 2)")]
)
def test_what_the_rules_do_not_equate_stays_apart(one: str, other: str) -> None:
    assert canonical("arithmetic", one) != canonical("arithmetic", other)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("3 + 4 * (2 - 1)", "(+ 3 (* 4 (- 2 1)))"),
        ("1+2+3", "(+ 1 2 3)"),
        ("1-2-3", "(- (- 1 2) 3)"),
        ("8 / 4 / 2 * 3", "(* (/ (/ 8 4) 2) 3)"),
        ("2 × 3 ÷ 4 − 1", "(- (/ (* 2 3) 4) 1)"),
        ("-3 * -(2 + 1)", "(* -3 (neg (+ 2 1)))"),
        ("2 - -3", "(- 2 -3)"),
        ("--3", "(neg -3)"),
        ("0.75 + .5".replace(" .", " 0."), "(+ 3/4 1/2)"),
        ("((7))", "7"),
        ("3/4", "(/ 3 4)"),
    ],
)
def test_infix(text: str, printed: str) -> None:
    assert render(parse_infix(text)) == printed


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 0, "a number or \\( must stand here, not the end"),
        ("3 +", 3, "not the end"),
        ("3 + * 4", 4, "must stand here"),
        ("(3 + 4", 0, "never closed"),
        ("3 + 4)", 5, "does not fit"),
        ("3 4", 2, "does not fit"),
        ("2 ^ 3", 2, "no part of an expression"),
        ("3 + x", 4, "no part of an expression"),
        ("1 + " + "9" * 2000, 4, "digits"),
        ("1 + 2.", 5, "no part of an expression"),
    ],
)
def test_what_is_no_expression_is_an_error_at_its_place(text: str, position: int, reason: str) -> None:
    with pytest.raises(CodecError, match=reason) as caught:
        parse_infix(text)
    assert caught.value.position == position


@pytest.mark.parametrize("text", ["(" * 100_000, "-" * 100_000 + "1", "1" + "-1" * 1000, "(" * 65 + "1" + ")" * 65])
def test_depth_is_bounded_in_infix_too(text: str) -> None:
    with pytest.raises(CodecError, match="nested deeper"):
        parse_infix(text)


def test_length_is_not_depth() -> None:
    assert value(parse_infix("+".join(["1"] * 5000))) == 5000
    assert value(parse_infix("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH)) == 1


def written(rng: random.Random, depth: int) -> tuple[str, Fraction]:
    """An infix text with as many parentheses as it needs or more, and its value, made side by side."""
    if depth == 0 or rng.random() < 0.2:
        number = rng.randint(0, 12)
        return str(number), Fraction(number)
    (left, left_value), (right, right_value) = written(rng, depth - 1), written(rng, depth - 1)
    op = rng.choice("+-*/" if right_value else "+-*")
    values = {"+": left_value + right_value, "-": left_value - right_value, "*": left_value * right_value}
    worth = left_value / right_value if op == "/" else values[op]
    text = f"({left}){op}({right})" if op in "*/" else f"{left} {op} ({right})"
    return (f"-({text})", -worth) if rng.random() < 0.1 else (text, worth)


@given(seeds)
def test_infix_means_what_it_says(seed: int) -> None:
    text, worth = written(random.Random(seed), 4)
    tree = problem_tree({"domain": "arithmetic", "expression": text})
    assert value(tree) == worth
    assert value(ARITHMETIC.canonical(tree)) == worth


@pytest.mark.parametrize(
    ("text", "worth"),
    [("2+3*4", 14), ("2*3+4", 10), ("20-8-4", 8), ("48/4/2", 6), ("2-3+4", 3), ("12/4*3", 9), ("-2*3", -6)],
)
def test_precedence(text: str, worth: int) -> None:
    assert value(parse_infix(text)) == worth


def test_no_value_is_an_error() -> None:
    with pytest.raises(CodecError, match="division by zero in \\(/ 1 \\(- 2 2\\)\\)"):
        value(parse_infix("3 + 1 / (2 - 2)"))
    with pytest.raises(CodecError, match="no value"):
        value(ARITHMETIC.parse("(= 1 1)"))
