"""The home's side of an evaluation on another machine: answers are asked for, waited for, and read.

A node comes for the request by itself and hands its answers back; see `answering`. From here on they are like those of
an engine of this machine: scored, compared and decided upon here.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stokehold.core.config import Config
from stokehold.core.errors import IntegrityError
from stokehold.core.identity import short_id
from stokehold.core.records import Completion, Sample
from stokehold.data.profile import profile_of
from stokehold.data.tokenizer import load_tokenizer
from stokehold.inference.registry import hash_of
from stokehold.pipeline.evaluate import ENGINE_VERSION, SEED
from stokehold.pipeline.suites import Suite, keep_suites
from stokehold.store.home import Home
from stokehold.store.transfer import evaluation_requests
from stokehold.store.transfer.evaluation_requests import Answers, Limits, Request, SuiteFile

POLL_S = 0.2
NODE = "node"
"""`devices.evaluator` where another machine answers."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What another machine's engine gave, as `evaluate.Answering`."""

    answers: Answers
    suites: Mapping[tuple[str, ...], str]
    """Names of the suites by the ids of their items."""

    @property
    def template_hash(self) -> str:
        return self.answers.header.template

    @property
    def dtype(self) -> str:
        return self.answers.header.dtype

    @property
    def device_type(self) -> str:
        return self.answers.header.device

    @property
    def spent_before_s(self) -> float:
        return self.answers.header.seconds

    def complete_batches(
        self, samples: Sequence[Sample], *_limits: Any, **_more: Any
    ) -> Iterator[dict[int, Completion]]:
        """All at once; they were made under the limits of the request."""
        yield {number: self._found(samples, number, None) for number in range(len(samples))}

    def sample_batches(
        self, samples: Sequence[Sample], k: int, *_limits: Any, **_more: Any
    ) -> Iterator[dict[tuple[int, int], Completion]]:
        """All at once; they were drawn under the limits of the request."""
        numbers = range(len(samples))
        yield {(number, draw): self._found(samples, number, draw) for number in numbers for draw in range(k)}

    def _found(self, samples: Sequence[Sample], number: int, draw: int | None) -> Completion:
        suite = self.suites[_ids(samples)]
        found = self.answers.completions[suite, number, draw]
        if found.sample_id != samples[number].id:
            where = f"{suite}, item {number + 1}"
            raise IntegrityError("the node answered another item", where, "both machines must run the same release")
        return found


def answered(
    home: Home, config: Config, folder: Path, ref: str, suites: Sequence[Suite], between: Callable[[], None]
) -> Answered:
    """Asks for answers of the weights in `folder` to these suites, and waits.

    `between` is called all the while, and raises where nobody wants them any more.
    """
    sound = [suite for suite in suites if suite.fault is None]
    request = _request(home, config, folder, ref, sound)
    keep_suites(home, sound)  # a node takes them by their hash
    while True:
        evaluation_requests.ask(home, request)
        if (found := evaluation_requests.answers(home, request)) is not None:
            break
        between()
        time.sleep(POLL_S)
    return Answered(found, {_ids(suite.samples): suite.name for suite in sound})


def _ids(samples: Sequence[Sample]) -> tuple[str, ...]:
    return tuple(sample.id for sample in samples)


def _request(home: Home, config: Config, folder: Path, ref: str, suites: Sequence[Suite]) -> Request:
    settings = config.evaluation
    limits = Limits(
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        gold_multiple=settings.gold_multiple,
        draws=settings.draws,
        temperature=settings.temperature,
        seed=SEED,
    )
    template = load_tokenizer(folder, profile_of(config.data)).template_hash
    hashes = (suite.hash for suite in suites)
    return Request(
        format=evaluation_requests.FORMAT,
        id=short_id(hash_of(folder), ENGINE_VERSION, template, config.model.dtype, limits.model_dump_json(), *hashes),
        ref=ref,
        folder=str(folder.relative_to(home.root)),
        engine=ENGINE_VERSION,
        template=template,
        limits=limits,
        suites=tuple(
            SuiteFile(name=suite.name, blake3=suite.hash, bytes=len(suite.content), items=len(suite.samples))
            for suite in suites
        ),
    )
