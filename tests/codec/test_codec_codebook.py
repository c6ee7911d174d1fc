"""The codebook: reversible on everything, learned the same from any order, and saving what it says."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.codec.codebook import Codebook, learn, tokens_saved
from stokehold.codec.domains import ARITHMETIC
from stokehold.codec.infix import parse_infix
from stokehold.codec.sexpr import Code, CodecError, Form, Tree, lexemes, parse, render
from stokehold.core.errors import IntegrityError

leaves = st.integers(0, 3).map(lambda n: parse(str(n)))
trees = st.recursive(
    leaves,
    lambda inner: st.builds(Form, st.sampled_from(["+", "*"]), st.lists(inner, min_size=2, max_size=3).map(tuple)),
    max_leaves=10,
)
corpora = st.lists(trees, max_size=12)


def corpus(count: int, seed: int) -> list[Tree]:
    rng = random.Random(seed)
    parts = ["(2 - 1)", "4 * (7 + 5)", "(3 * 3)", "9"]
    texts = (f"{rng.choice(parts)} + {rng.choice(parts)} * {rng.randint(0, 9)}" for _ in range(count))
    return [ARITHMETIC.canonical(parse_infix(text)) for text in texts]


@given(corpora, trees, st.integers(0, 8))
def test_decode_of_encode_is_the_tree(examples: list[Tree], other: Tree, size: int) -> None:
    book = learn(examples, size)
    assert len(book.entries) <= size
    for tree in (*examples, other):
        text = book.encode(tree)
        assert book.decode(text) == tree
        assert lexemes(text) <= lexemes(render(tree))


@given(corpora, st.randoms(use_true_random=False))
def test_the_order_of_the_corpus_does_not_matter(examples: list[Tree], rng: random.Random) -> None:
    shuffled = list(examples)
    rng.shuffle(shuffled)
    assert learn(shuffled, 6) == learn(examples, 6)
    assert learn(shuffled, 6).version == learn(examples, 6).version


@given(corpora, st.integers(1, 8))
def test_every_entry_is_used_at_least_twice(examples: list[Tree], size: int) -> None:
    book = learn(examples, size)
    encoded = " ".join(book.encode(tree) for tree in examples)
    assert all(encoded.count(render(Code(i))) >= 2 for i in range(len(book.entries)))


def test_an_entry_that_later_ones_swallow_is_dropped() -> None:
    outer = [parse(f"({op} (- 2 1) 5)") for op in "+*/"]
    book = learn([*outer, *outer], 10)
    assert sorted(book.entries, key=render) == sorted(outer, key=render)


def test_the_first_entry_is_the_best_single_one() -> None:
    examples = corpus(60, 1)
    candidates = {part for tree in examples for part in walk(tree) if isinstance(part, Form)}
    best = max(tokens_saved(Codebook((part,)), examples).saved for part in candidates)
    assert tokens_saved(learn(examples, 1), examples).saved == best > 0


def walk(tree: Tree) -> list[Tree]:
    return [tree, *(part for arg in tree.args for part in walk(arg))] if isinstance(tree, Form) else [tree]


def test_more_codes_save_more_and_a_fresh_corpus_too() -> None:
    train, fresh = corpus(100, 1), corpus(100, 2)
    saved = [tokens_saved(learn(train, size), train).saved for size in (0, 1, 4, 16)]
    assert saved == sorted(saved)
    assert saved[0] == 0
    assert saved[-1] > saved[1] > 0
    assert tokens_saved(learn(train, 16), fresh).share > 0.2


def test_saving_is_by_the_callers_counter() -> None:
    book = Codebook((ARITHMETIC.form("-", (parse("2"), parse("1"))),))
    tree = ARITHMETIC.parse("(+ (- 2 1) (- 2 1))")
    assert book.encode(tree) == "(+ <E000> <E000>)"
    assert (tokens_saved(book, [tree]).plain, tokens_saved(book, [tree]).encoded) == (13, 5)
    by_characters = tokens_saved(book, [tree, tree], len)
    assert (by_characters.plain, by_characters.encoded) == (2 * 19, 2 * 17)
    assert by_characters.share == pytest.approx(4 / 38)
    assert tokens_saved(book, []).share is None


def test_nested_entries_are_reversible_and_the_outer_one_wins() -> None:
    inner, outer = parse("(- 2 1)"), parse("(* 4 (- 2 1))")
    assert isinstance(inner, Form)
    assert isinstance(outer, Form)
    book = Codebook((inner, outer))
    text = book.encode(parse("(+ (* 4 (- 2 1)) (- 2 1) (- 1 2))"))
    assert text == "(+ <E001> <E000> (- 1 2))"
    assert render(book.decode(text)) == "(+ (* 4 (- 2 1)) (- 2 1) (- 1 2))"


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("(+ 1 <E001>)", 5, "not in this codebook of 1"),
        ("(+ 1 <E000>", 0, "never closed"),
        ("(+ 1 <E00>)", 5, "no number"),
    ],
)
def test_what_cannot_be_decoded_is_an_error_at_its_place(text: str, position: int, reason: str) -> None:
    book = Codebook((ARITHMETIC.form("-", (parse("2"), parse("1"))),))
    with pytest.raises(CodecError, match=reason) as caught:
        book.decode(text)
    assert caught.value.position == position


def test_a_code_that_expands_too_deep_is_an_error() -> None:
    deep: Tree = parse("1")
    for _ in range(60):
        deep = Form("neg", (deep,))
    assert isinstance(deep, Form)
    with pytest.raises(CodecError, match="nested deeper"):
        Codebook((deep,)).decode("(neg " * 10 + "<E000>" + ")" * 10)


def test_encoding_twice_and_impossible_books_are_refused() -> None:
    entry = ARITHMETIC.form("-", (parse("2"), parse("1")))
    with pytest.raises(CodecError, match="encoded already"):
        Codebook((entry,)).encode(parse("(+ 1 <E000>)"))
    with pytest.raises(CodecError, match="encoded already"):
        learn([parse("(+ 1 <E000>)")])
    with pytest.raises(CodecError, match="twice"):
        Codebook((entry, entry))
    with pytest.raises(CodecError, match="holds a code"):
        Codebook((Form("neg", (Code(0),)),))
    with pytest.raises(CodecError, match="at most 1000"):
        learn([], 1001)


def test_the_version_is_the_content() -> None:
    book = learn(corpus(60, 1), 8)
    assert len(book.entries) > 2
    assert Codebook.from_json(book.to_json()) == book
    assert Codebook(book.entries[::-1]).version != book.version
    assert Codebook(book.entries[:-1]).version != book.version


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stored: stored["entries"].pop(),
        lambda stored: stored["entries"].reverse(),
        lambda stored: stored["entries"].append("7"),
        lambda stored: stored["entries"].append("(+ 1"),
        lambda stored: stored.update(format=2),
        lambda stored: stored.pop("version"),
    ],
)
def test_a_spoiled_codebook_is_refused(spoil: object) -> None:
    stored = json.loads(learn(corpus(60, 1), 8).to_json())
    spoil(stored)  # type: ignore[operator]
    with pytest.raises(IntegrityError):
        Codebook.from_json(json.dumps(stored))
    with pytest.raises(IntegrityError):
        Codebook.from_json("no json")
