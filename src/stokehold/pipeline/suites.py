"""Suites as samples: what a home judges on, what it judged on once, and what therefore must not be trained.

A suite that cannot be judged comes with its fault: it is `broken`, and the others are judged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stokehold.core.errors import IntegrityError, NotFoundError, StokeholdError
from stokehold.core.records import Evaluation, Sample, SuiteResult, SuiteState
from stokehold.evaluation.builtin import builtin_samples
from stokehold.evaluation.suite_files import read_suite
from stokehold.store.home import Home
from stokehold.store.judged.suites import (
    builtin_of,
    freeze_builtin,
    frozen_builtins,
    hash_of,
    keep_version,
    read_suite_file,
    read_version,
    suite_names,
)
from stokehold.tasks.registry import family_of, row


@dataclass(frozen=True, slots=True)
class Suite:
    """A frozen suite; `hash` is over its content. With a `fault` it is not to be judged, and says why and what to do.

    `samples` of a faulty one are the items that could be read.
    """

    name: str
    hash: str
    samples: tuple[Sample, ...]
    fault: str | None = None
    content: bytes = field(default=b"", repr=False)

    @property
    def broken(self) -> SuiteResult:
        """What a faulty suite shows instead of readings."""
        return SuiteResult(self.name, SuiteState.BROKEN, n=0, unscored=len(self.samples), reason=self.fault)


def open_suites(home: Home, names: Sequence[str] = ()) -> list[Suite]:
    """The suites asked for, else every file of the home, by name. One that cannot be had comes with its fault."""
    return [_open_any(home, name) for name in sorted(set(names or suite_names(home)))]


def open_suite(home: Home, name: str) -> Suite:
    """One suite, a built-in one made on its first use; `NotFoundError` names those there are."""
    builtin = builtin_of(home, name)
    if builtin is not None and builtin.name not in frozen_builtins(home):
        samples = builtin_samples(builtin.family, builtin.hardness, builtin.count)
        freeze_builtin(home, builtin, [row(sample) for sample in samples])
    return _suite(name, read_suite_file(home, name))


def judged_suites(home: Home, evaluation: Evaluation) -> list[Suite]:
    """The suites of an evaluation as they were when it was made; as they are now where that was not kept.

    A suite that is gone without a copy comes with its fault and without items.
    """
    return [_as_judged(home, name, evaluation.suite_hashes.get(name)) for name in sorted(evaluation.suites)]


def suites_of_family(home: Home, evaluation: Evaluation, family: str) -> list[str]:
    """The suites of an evaluation that hold problems of this task family, by name."""
    found = judged_suites(home, evaluation)
    return [suite.name for suite in found if any(family_of(sample) == family for sample in suite.samples)]


def held_out(home: Home) -> Iterator[Sample]:
    """Every item that this home judges or judged on: its suites' files, and the built-in ones that were asked for."""
    for name in sorted({*suite_names(home), *frozen_builtins(home), *home.config().evaluation.suites}):
        yield from _open_any(home, name).samples


def keep_suites(home: Home, suites: Sequence[Suite]) -> None:
    """Keeps the content of suites that are judged, so that their items can be found by their hash later on."""
    for suite in suites:
        if suite.fault is None:
            keep_version(home, suite.content)


def _open_any(home: Home, name: str) -> Suite:
    try:
        return open_suite(home, name)
    except StokeholdError as error:
        return Suite(name, "", (), str(error))
    except OSError as error:
        return Suite(name, "", (), f"cannot be read: {error.strerror} · suites/{name}.jsonl · look at the file")


def _as_judged(home: Home, name: str, digest: str | None) -> Suite:
    if digest is None:
        return _open_any(home, name)
    try:
        return _suite(name, read_version(home, digest))
    except NotFoundError:
        return _open_any(home, name)
    except IntegrityError as error:
        return Suite(name, digest, (), str(error))


def _suite(name: str, content: bytes) -> Suite:
    items = read_suite(content, f"suites/{name}.jsonl")
    return Suite(name, hash_of(content), items.samples, items.fault, content)
