"""Parse and render are inverse; whatever is malformed is a typed error at a position, however deep or long it is."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.codec.domains import ARITHMETIC, DOMAINS, SYLLOGISM, canonical, get_domain
from stokehold.codec.sexpr import MAX_DEPTH, Code, CodecError, Form, Number, Symbol, Tree, lexemes, parse, render

words = st.from_regex(r"[a-zA-Zäßλ][\w-]{0,6}", fullmatch=True)
atoms = st.one_of(
    st.fractions().map(Number),
    words.map(Symbol),
    st.integers(0, 999).map(Code),
    st.integers().map(Fraction).map(Number),
)
operators = st.one_of(st.sampled_from(["+", "-", "*", "/", "="]), words)
trees = st.recursive(
    atoms, lambda inner: st.builds(Form, operators, st.lists(inner, max_size=4).map(tuple)), max_leaves=20
)


@given(trees)
def test_parse_of_render_is_the_tree(tree: Tree) -> None:
    assert parse(render(tree)) == tree


@given(trees, st.sampled_from([" ", "\n", "\t  ", "\u00a0"]))
def test_white_space_and_only_it_is_free(tree: Tree, space: str) -> None:
    loose = render(tree).replace("(", f"{space}({space}").replace(" ", space).replace(")", f"{space}){space}")
    assert parse(loose) == tree
    assert render(parse(loose)) == render(tree)


@given(trees)
def test_length_is_parentheses_and_atoms(tree: Tree) -> None:
    assert lexemes(render(tree)) == len(render(tree).replace("(", "( ").replace(")", " )").split())


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("6/8", "3/4"),
        ("-0", "0"),
        ("007", "7"),
        ("4/2", "2"),
        ("-10/4", "-5/2"),
        ("<E007>", "<E007>"),
        ("( f )", "(f)"),
    ],
)
def test_one_printing(text: str, printed: str) -> None:
    assert render(parse(text)) == printed


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 0, "nothing"),
        ("   ", 0, "nothing"),
        ("(+ 1 2", 0, "never closed"),
        ("(+ 1 (* 2 3)", 0, "never closed"),
        ("(+ 1 (* 2 3", 5, "never closed"),
        ("(+ 1 2))", 7, "after the expression"),
        (") 1", 0, "nothing opened"),
        ("1 2", 2, "after the expression"),
        ("()", 1, "operator must follow"),
        ("((+ 1 2))", 1, "operator must follow"),
        ("(3 4)", 1, "operator must follow"),
        ("(<E000> 4)", 1, "operator must follow"),
        ("(+ 1 2.5)", 5, "no number, word or code"),
        ("(+ 1 <E1>)", 5, "no number, word or code"),
        ("(+ 1 -)", 5, "no number, word or code"),
        ("(+ 1 \u0663)", 5, "no number, word or code"),
        ("(+ 1 2/0)", 5, "over 0"),
        ("(+ 1 " + "9" * 2000 + ")", 5, "digits"),
        ("(+ 1 1/" + "9" * 2000 + ")", 5, "digits"),
    ],
)
def test_malformed_text_is_an_error_at_its_place(text: str, position: int, reason: str) -> None:
    with pytest.raises(CodecError, match=reason) as caught:
        parse(text)
    assert caught.value.position == position
    assert f"character {position}" in str(caught.value)


@given(st.text(alphabet="()+-*/= ab1<E0>\n", max_size=60))
def test_any_text_is_a_tree_or_a_codec_error(text: str) -> None:
    for read in (parse, ARITHMETIC.parse, SYLLOGISM.parse):
        try:
            tree = read(text)
        except CodecError:
            continue
        assert parse(render(tree)) == tree


def nested(levels: int) -> str:
    return "(neg " * levels + "1" + ")" * levels


def test_depth_is_bounded_with_a_clear_error_however_deep() -> None:
    deepest = ARITHMETIC.parse(nested(MAX_DEPTH))
    assert parse(render(deepest)) == deepest
    assert render(ARITHMETIC.canonical(deepest)) == "1"
    for text in (nested(MAX_DEPTH + 1), nested(100_000), "(f " * 1_000_000):
        with pytest.raises(CodecError, match="nested deeper") as caught:
            parse(text)
        assert caught.value.position is not None
    with pytest.raises(CodecError, match="nested deeper"):
        Form("neg", (deepest,))


def test_trees_cannot_be_malformed() -> None:
    for make in (
        lambda: Symbol("a b"),
        lambda: Symbol("3a"),
        lambda: Symbol(""),
        lambda: Form("(", ()),
        lambda: Code(1000),
    ):
        with pytest.raises(CodecError):
            make()


@pytest.mark.parametrize(
    ("domain", "text", "position", "reason"),
    [
        ("arithmetic", "(+ 1 (sqrt 4))", 5, "no operator 'sqrt'"),
        ("arithmetic", "(+ 1)", 0, "takes at least 2"),
        ("arithmetic", "(* 2 (- 1 2 3))", 5, "takes 2 arguments, not 3"),
        ("arithmetic", "(+ 1 x)", 0, "argument 2 of '\\+' must be a number"),
        ("arithmetic", "(+ 1 (= 2 2))", 0, "must be a number"),
        ("arithmetic", "(+ 1 <E000>)", 0, "must be a number"),
        ("arithmetic", "x", 0, "is no number or equation"),
        ("syllogism", "(all a 3)", 0, "argument 2 of 'all' must be a term"),
        ("syllogism", "(all a (no b c))", 0, "must be a term"),
        ("syllogism", "(premises)", 0, "takes at least 1"),
        ("syllogism", "(argument (all a b) (all a b))", 0, "must be a premises"),
        ("syllogism", "maybe", 0, "is no proposition"),
    ],
)
def test_types_are_checked_where_they_stand(domain: str, text: str, position: int, reason: str) -> None:
    with pytest.raises(CodecError, match=reason) as caught:
        DOMAINS[domain].parse(text)
    assert caught.value.position == position


def test_a_tree_made_without_types_is_checked_before_it_is_canonical() -> None:
    with pytest.raises(CodecError, match="must be a number: \\(sqrt 4\\)"):
        ARITHMETIC.canonical(parse("(+ 1 (neg (sqrt 4)))"))
    with pytest.raises(CodecError, match="no domain 'algebra'"):
        get_domain("algebra")
    assert canonical("syllogism", "valid") == "valid"
