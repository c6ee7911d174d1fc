"""From a problem as plain data to its tree: the bridge from task families, which this room does not import."""

from collections.abc import Mapping
from typing import Any

from stokehold.codec.domains import get_domain
from stokehold.codec.infix import parse_infix
from stokehold.codec.sentences import argument, parse_sentence, parse_sentences
from stokehold.codec.sexpr import CodecError, Tree


def problem_tree(problem: Mapping[str, Any]) -> Tree:
    """The well-typed tree of one of these; `CodecError` otherwise, with a position inside the offending text.

    `{"domain": "arithmetic", "expression": "3 + 4 * (2 - 1)"}`
    `{"domain": "syllogism", "text": "All A are B. No B are C. Therefore, no A are C."}`
    `{"domain": "syllogism", "premises": ["All A are B", …], "conclusion": "No A are C"}` (conclusion optional)
    """
    domain = get_domain(_text(problem, "domain"))
    if domain.name == "arithmetic":
        return domain.check(parse_infix(_text(problem, "expression")))
    if "text" in problem:
        return domain.check(parse_sentences(_text(problem, "text")))
    premises = problem.get("premises")
    if not isinstance(premises, list | tuple) or not all(isinstance(premise, str) for premise in premises):
        raise CodecError("a syllogism needs its text, or premises as a list of sentences")
    conclusion = None if problem.get("conclusion") is None else parse_sentence(_text(problem, "conclusion"))
    return domain.check(argument([parse_sentence(premise) for premise in premises], conclusion))


def _text(problem: Mapping[str, Any], key: str) -> str:
    found = problem.get(key)
    if not isinstance(found, str):
        raise CodecError(f"the problem has no text under {key!r}")
    return found
