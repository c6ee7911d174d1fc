"""Syllogisms: the canonical form is one per argument up to renaming, order and symmetry, and no coarser."""

import random
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.codec.domains import SYLLOGISM, canonical
from stokehold.codec.problems import problem_tree
from stokehold.codec.sexpr import CodecError, Form, Symbol, Tree, parse, render
from stokehold.codec.syllogism import canonical_syllogism

OPS = ("all", "no", "some", "some-not")
Fact = tuple[str, str, str]


def facts_over(terms: str) -> st.SearchStrategy[Fact]:
    return st.tuples(st.sampled_from(OPS), st.sampled_from(terms), st.sampled_from(terms))


def arguments(terms: str, most: int) -> st.SearchStrategy[tuple[list[Fact], Fact]]:
    return st.tuples(st.lists(facts_over(terms), min_size=1, max_size=most), facts_over(terms))


def tree_of(premises: list[Fact], conclusion: Fact) -> Tree:
    forms = [Form(op, (Symbol(left), Symbol(right))) for op, left, right in (*premises, conclusion)]
    return SYLLOGISM.form("argument", (SYLLOGISM.form("premises", tuple(forms[:-1])), forms[-1]))


def meaning(premises: list[Fact], conclusion: Fact) -> object:
    def normal(fact: Fact) -> Fact:
        op, left, right = fact
        return (op, *sorted((left, right))) if op in ("no", "some") else fact

    return frozenset(map(normal, premises)), normal(conclusion)


def renamed(fact: Fact, names: dict[str, str]) -> Fact:
    return fact[0], names[fact[1]], names[fact[2]]


@given(arguments("abcdefg", 7), st.integers(0, 10**6))
def test_order_repetition_symmetry_and_names_mean_nothing(pair: tuple[list[Fact], Fact], seed: int) -> None:
    premises, conclusion = pair
    rng = random.Random(seed)
    fresh = dict(zip("abcdefg", rng.sample(["cat", "dog", "emu", "fox", "gnu", "hen", "ibis", "jay"], 7), strict=True))

    def disguised(fact: Fact) -> Fact:
        op, left, right = renamed(fact, fresh)
        return (op, right, left) if op in ("no", "some") and rng.random() < 0.5 else (op, left, right)

    other = [disguised(f) for f in premises] + [disguised(rng.choice(premises))]
    rng.shuffle(other)
    one = SYLLOGISM.canonical(tree_of(premises, conclusion))
    assert SYLLOGISM.canonical(tree_of(other, disguised(conclusion))) == one
    assert SYLLOGISM.canonical(one) == one
    assert SYLLOGISM.parse(render(one)) == one


def facts_of(tree: Tree) -> tuple[list[Fact], Fact]:
    assert isinstance(tree, Form)
    found = [parse(render(p)) for p in (*tree.args[0].args, tree.args[1])]  # type: ignore[union-attr]
    facts = [(f.op, f.args[0].name, f.args[1].name) for f in found]  # type: ignore[union-attr]
    return facts[:-1], facts[-1]


@given(arguments("abcdef", 6))
def test_the_names_lead_back_to_the_argument(pair: tuple[list[Fact], Fact]) -> None:
    result = canonical_syllogism(tree_of(*pair))
    premises, conclusion = facts_of(result.tree)
    back = [renamed(f, dict(result.names)) for f in premises]
    assert meaning(back, renamed(conclusion, dict(result.names))) == meaning(*pair)
    first_seen = list(dict.fromkeys(term for f in (*premises, conclusion) for term in f[1:]))
    assert first_seen == sorted(first_seen)


@given(arguments("abc", 3), arguments("abc", 3))
def test_equal_forms_only_for_arguments_that_a_renaming_makes_equal(
    one: tuple[list[Fact], Fact], other: tuple[list[Fact], Fact]
) -> None:
    same = SYLLOGISM.canonical(tree_of(*one)) == SYLLOGISM.canonical(tree_of(*other))
    renamings = [dict(zip("abc", names, strict=True)) for names in permutations("abc")]
    aims = [meaning([renamed(f, names) for f in other[0]], renamed(other[1], names)) for names in renamings]
    assert same == (meaning(*one) in aims)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("(all dogs mammals)", "(all A B)"),
        ("(no mammals dogs)", "(no A B)"),
        ("(premises (no c b) (all a b))", "(premises (all A B) (no B C))"),
        ("(argument (premises (all b c) (all a b)) (all a c))", "(argument (premises (all A B) (all C A)) (all C B))"),
    ],
)
def test_canonical_examples(text: str, printed: str) -> None:
    assert canonical("syllogism", text) == printed


def test_the_four_figures_stay_apart() -> None:
    figures = [
        f"(argument (premises (all {major}) (all {minor})) (all s p))"
        for major in ("m p", "p m")
        for minor in ("s m", "m s")
    ]
    assert len({canonical("syllogism", figure) for figure in figures}) == 4


@pytest.mark.parametrize("count", [3, 6, 8])
@pytest.mark.parametrize("shape", ["(some a{0} a{1})", "(no a{0} c)", "(all a{0} a{1})", "(some-not c a{0})"])
def test_symmetric_arguments_are_settled(shape: str, count: int) -> None:
    lines = [shape.format(i, (i + 1) % count) for i in range(count)]
    one = canonical("syllogism", f"(premises {' '.join(lines)})")
    lines.reverse()
    assert canonical("syllogism", f"(premises {' '.join(lines)})") == one


@given(st.permutations("abcdefg"))
def test_cycles_that_look_alike_from_each_term_are_told_apart(names: list[str]) -> None:
    three_and_four = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 6), (6, 3)]
    lines = [f"(all {names[i]} {names[j]})" for i, j in three_and_four]
    ring = [f"(all {names[i]} {names[(i + 1) % 7]})" for i in range(7)]
    one = canonical("syllogism", f"(premises {' '.join(lines)})")
    expected = "(premises (all A B) (all B C) (all C A) (all D E) (all F D) (all E G) (all G F))"
    assert one == expected
    assert canonical("syllogism", f"(premises {' '.join(ring)})") != one


def test_many_interchangeable_groups_are_refused_not_searched_for_ever() -> None:
    with pytest.raises(CodecError, match="interchangeable"):
        canonical("syllogism", f"(premises {' '.join(f'(all a{i} b{i})' for i in range(8))})")


def test_too_many_terms_are_refused() -> None:
    with pytest.raises(CodecError, match="17 terms"):
        canonical("syllogism", f"(premises {' '.join(f'(all a{i} a{i + 1})' for i in range(16))})")


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("All A are B. No B are C.", "(premises (all a b) (no b c))"),
        ("Some A are not B.\nSome A are B", "(premises (some-not a b) (some a b))"),
        ("Every red bird is an animal.", "(premises (all red-bird animal))"),
        ("Not all A are B.", "(premises (some-not a b))"),
        ("all  Ducks   are\tbirds.", "(premises (all ducks birds))"),
        ("All A are B. Therefore, some B are A.", "(argument (premises (all a b)) (some b a))"),
        ("All A are B. So no A are C.", "(argument (premises (all a b)) (no a c))"),
        ("All A are B. Conclusion: All A are B.", "(argument (premises (all a b)) (all a b))"),
        ("All sophists are thugs.", "(premises (all sophists thugs))"),
    ],
)
def test_sentences(text: str, printed: str) -> None:
    assert render(problem_tree({"domain": "syllogism", "text": text})) == printed


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 0, "no premise"),
        ("Therefore, all A are B.", 23, "no premise"),
        ("All A are B. Dogs bark.", 13, "not a categorical sentence"),
        ("All A are not B.", 0, "not a categorical sentence"),
        ("No A are not B.", 0, "not a categorical sentence"),
        ("All A are B are C.", 0, "ambiguous"),
        ("Not all A are not B.", 0, "ambiguous"),
        ("All A are B. Therefore, all A are B. All C are D.", 37, "after the conclusion"),
        ("All A are B.  Therefore, perhaps.", 25, "not a categorical sentence"),
        ("All 3 cats are B.", 0, "cannot be a term"),
    ],
)
def test_other_sentences_are_errors_at_their_place(text: str, position: int, reason: str) -> None:
    with pytest.raises(CodecError, match=reason) as caught:
        problem_tree({"domain": "syllogism", "text": text})
    assert caught.value.position == position


def test_premises_and_conclusion_apart_are_the_same_problem() -> None:
    apart = problem_tree(
        {"domain": "syllogism", "premises": ["All A are B.", "All B are C"], "conclusion": "All A are C."}
    )
    together = problem_tree({"domain": "syllogism", "text": "All A are B. All B are C. Hence all A are C."})
    assert apart == together


@pytest.mark.parametrize(
    "problem",
    [
        {},
        {"domain": "algebra", "text": "x"},
        {"domain": "arithmetic"},
        {"domain": "arithmetic", "expression": 7},
        {"domain": "syllogism"},
        {"domain": "syllogism", "premises": "All A are B."},
        {"domain": "syllogism", "premises": []},
        {"domain": "syllogism", "premises": ["All A are B"], "conclusion": 3},
    ],
)
def test_a_problem_that_is_none_is_a_codec_error(problem: dict[str, object]) -> None:
    with pytest.raises(CodecError):
        problem_tree(problem)
