"""Categorical propositions: what counts as the same argument.

Rules of sameness: `no` and `some` are symmetric; premises are a set (order and repetition mean nothing); terms are
names only, renamed A, B, C … in the order of their first appearance in the canonical form. Two arguments get the same
form exactly when one becomes the other by these rules: a canonical labelling of the graph whose edges are propositions
(colour refinement, then a search over what symmetry leaves open).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stokehold.codec.sexpr import CodecError, Form, Symbol, Tree, render

PREMISE, CONCLUSION = 0, 1
SYMMETRIC = ("no", "some")
TERM_NAMES = "ABCDEFGHIJKLMNOP"
MAX_LABELLINGS = 1000
"""Bound of the search. Only many interchangeable groups of terms come near it."""


@dataclass(frozen=True, slots=True, order=True)
class Edge:
    """One proposition between two terms; the terms of a symmetric one are in sorted order."""

    place: int
    op: str
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Renamed:
    """The canonical tree and what its letters stood for: `names["A"]` is the original term."""

    tree: Tree
    names: Mapping[str, str]


def canonical_syllogism(tree: Tree) -> Renamed:
    """Of a proposition, premises or an argument; a verdict is itself. `CodecError` when it is too symmetric."""
    if not isinstance(tree, Form):
        return Renamed(tree, {})
    edges = frozenset(_edges(tree))
    terms = sorted({term for edge in edges for term in (edge.left, edge.right)})
    if len(terms) > len(TERM_NAMES):
        raise CodecError(f"{len(terms)} terms", fix=f"at most {len(TERM_NAMES)} in one argument")
    ranks = _best_labelling(edges, terms)
    names: dict[str, str] = {}
    ranked = sorted(edges, key=lambda edge: _ranked(edge, ranks))
    propositions = [_proposition(edge, ranks, names) for edge in ranked]
    given = [form for edge, form in zip(ranked, propositions, strict=True) if edge.place == PREMISE]
    return Renamed(_assemble(tree.op, given, propositions[-1]), {letter: term for term, letter in names.items()})


def _edges(tree: Form) -> Iterator[Edge]:
    if tree.op == "argument":
        yield from _propositions(tree.args[0], PREMISE)
        yield from _propositions(tree.args[1], CONCLUSION)
    else:
        yield from _propositions(tree, PREMISE)


def _propositions(tree: Tree, place: int) -> Iterator[Edge]:
    match tree:
        case Form("premises", members):
            for member in members:
                yield from _propositions(member, place)
        case Form(op, (Symbol(left), Symbol(right))):
            yield _edge(place, op, left, right)
        case _:
            raise CodecError(f"{render(tree)} is no proposition")


def _edge(place: int, op: str, left: str, right: str) -> Edge:
    first, second = sorted((left, right)) if op in SYMMETRIC else (left, right)
    return Edge(place, op, first, second)


def _assemble(op: str, premises: list[Form], last: Form) -> Form:
    if op == "argument":
        return Form(op, (Form("premises", tuple(premises)), last))
    return Form(op, tuple(premises)) if op == "premises" else last


def _proposition(edge: Edge, ranks: Mapping[str, int], names: dict[str, str]) -> Form:
    """Written with letters; a term met for the first time takes the next letter, in the order of ranks."""
    pair = (edge.left, edge.right)
    if edge.op in SYMMETRIC:
        pair = (pair[0], pair[1]) if ranks[pair[0]] <= ranks[pair[1]] else (pair[1], pair[0])
    for term in pair:
        if term not in names:
            names[term] = TERM_NAMES[len(names)]
    letters = [names[term] for term in pair]
    if edge.op in SYMMETRIC:
        letters.sort()
    return Form(edge.op, tuple(Symbol(letter) for letter in letters))


def _ranked(edge: Edge, ranks: Mapping[str, int]) -> tuple[int, str, int, int]:
    left, right = ranks[edge.left], ranks[edge.right]
    if edge.op in SYMMETRIC:
        left, right = sorted((left, right))
    return edge.place, edge.op, left, right


def _best_labelling(edges: frozenset[Edge], terms: list[str]) -> Mapping[str, int]:
    """The ranks (0…) whose edge list is least: the same for every renaming of the terms."""
    best: tuple[list[tuple[int, str, int, int]], Mapping[str, int]] | None = None
    for count, ranks in enumerate(_labellings(edges, dict.fromkeys(terms, 0)), 1):
        if count > MAX_LABELLINGS:
            raise CodecError("too many interchangeable terms", fix="split the premises")
        key = sorted(_ranked(edge, ranks) for edge in edges)
        if best is None or key < best[0]:
            best = (key, ranks)
    return {} if best is None else best[1]


def _labellings(edges: frozenset[Edge], colours: Mapping[str, int]) -> Iterator[Mapping[str, int]]:
    """Every labelling that refinement leaves open, but for those that a swap of twins makes equal to another."""
    colours = _refined(edges, colours)
    sizes = Counter(colours.values())
    open_cells = [(size, colour) for colour, size in sizes.items() if size > 1]
    if not open_cells:
        yield colours
        return
    chosen = min(open_cells)[1]
    tried: list[str] = []
    for term in (t for t, colour in colours.items() if colour == chosen):
        if any(_twins(edges, term, other) for other in tried):
            continue
        tried.append(term)
        yield from _labellings(edges, {t: 2 * c + (t == term) for t, c in colours.items()})


def _refined(edges: frozenset[Edge], colours: Mapping[str, int]) -> Mapping[str, int]:
    """Colours split by what each term is related to, until nothing splits; they end as 0…n-1, in an order that no
    renaming changes."""
    while True:
        seen: dict[str, list[tuple[int, str, int, int]]] = {term: [] for term in colours}
        for edge in edges:
            ends = (2, 2) if edge.op in SYMMETRIC else (0, 1)
            seen[edge.left].append((edge.place, edge.op, ends[0], colours[edge.right]))
            seen[edge.right].append((edge.place, edge.op, ends[1], colours[edge.left]))
        marks = {term: (colours[term], tuple(sorted(facts))) for term, facts in seen.items()}
        order = {mark: rank for rank, mark in enumerate(sorted(set(marks.values())))}
        finer = {term: order[mark] for term, mark in marks.items()}
        if len(order) == len(set(colours.values())):
            return finer
        colours = finer


def _twins(edges: frozenset[Edge], one: str, other: str) -> bool:
    """Whether swapping the two names changes nothing."""
    swap = {one: other, other: one}
    return all(_edge(e.place, e.op, swap.get(e.left, e.left), swap.get(e.right, e.right)) in edges for e in edges)
