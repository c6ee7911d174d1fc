"""`stoke compare A B --until-decided`: fresh held-out problems, drawn until the evidence is enough or no more may be.

The problems follow from the two weights alone: asking again draws the same ones and cannot fish for another verdict.
Nothing is stored.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from stokehold.core.config import Config
from stokehold.core.errors import NotFoundError, StokeholdError
from stokehold.core.identity import short_id
from stokehold.core.records import Sample, Verdict
from stokehold.evaluation.paired import ItemReading, Pair
from stokehold.evaluation.scorers import score
from stokehold.evaluation.sequential import SequentialComparison
from stokehold.inference.registry import Served
from stokehold.pipeline.judged import item_reading
from stokehold.pipeline.suites import open_suites
from stokehold.store.home import Home
from stokehold.tasks.registry import draw, family_of, identity_of

Kind = tuple[str, int]
"""Task family and level."""

Shown = Callable[[SequentialComparison], None]


def decide_by_drawing(
    home: Home, config: Config, pair: tuple[Served, Served], max_items: int, show: Shown
) -> SequentialComparison:
    """B against A on at most `max_items` fresh problems of the kinds that the home's suites hold; `show` is told of
    every look. Undecided where `decision` is None."""
    kinds = kinds_of(home, config)
    seed = int(short_id(*(served.weights_hash for served in pair))[:8], 16)
    problems = fresh(kinds, max_items, seed)
    state = SequentialComparison(config.evaluation.equivalence_margin)
    wanted = config.evaluation.batch_size
    while state.decision is None and state.items < max_items:
        samples = list(islice(problems, min(wanted, max_items - state.items)))
        if not samples:
            break
        state = state.update(_answered(pair, samples, config))
        show(state)
        wanted = state.more_items()
    return state


def kinds_of(home: Home, config: Config) -> list[Kind]:
    """Every family and level among the items of the suites that this home judges on."""
    suites = open_suites(home, config.evaluation.suites)
    named = ((family_of(s), s.metadata.get("level")) for suite in suites for s in suite.samples)
    kinds = sorted({(family, level) for family, level in named if family is not None and isinstance(level, int)})
    if not kinds:
        what = "no suite holds problems of a task family, so no more can be drawn"
        raise NotFoundError(what, str(home.suites), "add items to the suite, and compare without --until-decided")
    return kinds


def fresh(kinds: Sequence[Kind], count: int, seed: int) -> Iterator[Sample]:
    """Held-out problems of these kinds in turn, none twice; a kind that has no more is passed over."""
    waiting = [draw(family, level, count, seed, "holdout") for family, level in kinds]
    seen: set[str | None] = set()
    while waiting:
        problems = waiting.pop(0)
        try:
            sample = next(problems, None)
        except StokeholdError:
            continue  # this kind is used up
        if sample is None:
            continue
        waiting.append(problems)
        if (identity := identity_of(sample)) not in seen:
            seen.add(identity)
            yield sample


def decision_answer(state: SequentialComparison, names: tuple[str, str]) -> dict[str, Any]:
    """What scripts rely on; `items_needed` is about how many more would settle it at the present rate."""
    facts = asdict(state)
    kept = ("margin", "alpha", "items", "clusters", "lost", "gained")
    verdict = state.decision or Verdict.INCONCLUSIVE
    delta = state.net / state.clusters if state.clusters else None
    answer = {"verdict": verdict.value, "a": names[0], "b": names[1], "delta_exact": delta}
    return {**answer, **{name: facts[name] for name in kept}, "items_needed": state.more_items() or None}


def _answered(pair: tuple[Served, Served], samples: Sequence[Sample], config: Config) -> list[Pair]:
    first, second = (_readings(served, samples, config) for served in pair)
    return list(zip(first, second, strict=True))


def _readings(served: Served, samples: Sequence[Sample], config: Config) -> list[ItemReading]:
    settings = config.evaluation
    limits = (settings.max_new_tokens, settings.batch_size, settings.gold_multiple)
    completions = served.engine.complete(samples, *limits)
    both = zip(samples, completions, strict=True)
    return [item_reading("drawn", sample, done, score(sample, done)) for sample, done in both]
