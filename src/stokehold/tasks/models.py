"""Categorical statements and the search for a model of them.

A statement is [form, subject, predicate]: A all S are P, E no S are P, I some S are P, O some S are not P. Terms may
be empty (no existential import). An individual is the set of terms that it belongs to; a model is a list of them.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations

Statement = Sequence[str]
Individual = frozenset[str]

NEGATION = {"A": "O", "O": "A", "E": "I", "I": "E"}

UNIVERSAL = "AE"


def negation(statement: Statement) -> list[str]:
    """The statement that holds exactly where this one does not."""
    form, subject, predicate = statement
    return [NEGATION[form], subject, predicate]


def is_witness(statement: Statement, individual: Individual) -> bool:
    """For I and O: the individual makes the statement true. For A and E: it makes the statement false."""
    form, subject, predicate = statement
    return subject in individual and (predicate in individual) == (form in "IE")


def holds(statement: Statement, model: Iterable[Individual]) -> bool:
    """Whether the statement is true of these individuals."""
    witnessed = any(is_witness(statement, individual) for individual in model)
    return witnessed != (statement[0] in UNIVERSAL)


def counter_model(premises: Sequence[Statement], conclusion: Statement) -> list[Individual] | None:
    """A smallest-first model where the premises hold and the conclusion does not; None where there is none.

    Exhaustive: universal statements survive leaving individuals out, so an invalid argument has a model with at most
    one individual for each existential statement. Every kind of individual that no universal statement forbids is
    tried as the witness of each.
    """
    wanted = [*premises, negation(conclusion)]
    terms = sorted({term for statement in wanted for term in statement[1:]})
    kinds = [frozenset(group) for size in range(len(terms) + 1) for group in combinations(terms, size)]
    rules = [statement for statement in wanted if statement[0] in UNIVERSAL]
    allowed = [kind for kind in kinds if not any(is_witness(rule, kind) for rule in rules)]
    model: list[Individual] = []
    for statement in wanted:
        if statement[0] in UNIVERSAL or any(is_witness(statement, individual) for individual in model):
            continue
        witness = next((kind for kind in allowed if is_witness(statement, kind)), None)
        if witness is None:
            return None
        model.append(witness)
    return model


def is_counter_model(premises: Sequence[Statement], conclusion: Statement, model: Sequence[Individual]) -> bool:
    """Whether the premises hold of these individuals and the conclusion does not."""
    return all(holds(premise, model) for premise in premises) and not holds(conclusion, model)
