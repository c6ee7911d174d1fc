"""A node answers for another home: it takes the weights that are to be judged there, and hands its answers back.

`python -m stokehold.pipeline.answering --home H [--once]`, beside `stoke node join --judge` too

The node decides nothing. What it takes is removed when it is handed back; a kill at any instant costs at most the
answers to one request.
"""

import argparse
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from stokehold.core.errors import IntegrityError, NotFoundError, UsageError
from stokehold.core.records import Completion, Sample
from stokehold.data.profile import profile_of
from stokehold.evaluation.suite_files import read_suite
from stokehold.inference.engine import Engine
from stokehold.inference.registry import load
from stokehold.pipeline.evaluate import ENGINE_VERSION
from stokehold.pipeline.foreground import Meter, told
from stokehold.pipeline.worker import use_threads
from stokehold.store.blobs import BlobStore
from stokehold.store.home import Home
from stokehold.store.models import checkpoints, versions
from stokehold.store.parent import listen
from stokehold.store.transfer import evaluation_requests, offers, sync
from stokehold.store.transfer.evaluation_requests import Header, Key, Request, SuiteFile
from stokehold.store.transfer.remote import LinkError, Remote, Repeated

SHELF = "judging"
"""Folder of the node's home with the weights that are being judged."""

ASK_S = 2.0
"""Seconds between two questions whether there is something to judge."""

VISIT_S = 30.0
"""Seconds between two signs of life while answers are made."""

TICK_S = 0.2
KINDS = (checkpoints.KIND, versions.KIND)


class Answering:
    """Answers what `remote` wants judged, on `devices.trainer` of `home`; `work` is called again and again."""

    def __init__(self, home: Home, remote: Remote, meter: Meter) -> None:
        self._home, self._remote, self._meter = home, remote, meter
        self._refused = ""
        self._done = 0
        self._visit_s = 0.0

    def work(self) -> None:
        """One request from its offer to its answers, where there is one; errors are for the caller to tell."""
        document = evaluation_requests.ask_server(self._remote)
        if document["request"] is None:
            self._clear(None)
            return
        request = _request(document["request"], self._remote.url)
        if request.id == self._refused:
            return
        offer = offers.for_answering(offers.parse_folder(document["offer"], self._remote.url, KINDS))
        folder = self._home.root / SHELF / offer.weights_hash[:16]
        self._clear(folder)
        path = self._home.root / SHELF / f"{request.id}.jsonl"
        if not path.exists():
            self._take(request, offer, folder)
            self._answer(request, offer, folder, path)
        self._hand_back(request, path)
        self._clear(None)

    def _take(self, request: Request, offer: offers.Offer, folder: Path) -> None:
        suites = {suite.blake3: suite.bytes for suite in request.suites}

        def report(here: int, wanted: int) -> None:
            self._meter.show(request.ref, _share(here, wanted), f"{here / 1e6:,.1f} of {wanted / 1e6:,.1f} MB")

        sync.borrow(self._home, self._remote, offer, suites, folder, report)

    def _answer(self, request: Request, offer: offers.Offer, folder: Path, path: Path) -> None:
        device, settings = self._home.config().devices.trainer, offer.settings
        self._done, started = 0, time.perf_counter()
        engine = load(folder, settings.model.dtype, device, profile_of(settings.data)).engine
        found = [answer for suite in request.suites for answer in self._answers(engine, request, suite)]
        header = Header(
            request=request.id,
            engine=ENGINE_VERSION,
            template=engine.template_hash,
            dtype=engine.dtype,
            device=engine.device_type,
            seconds=time.perf_counter() - started,
        )
        evaluation_requests.write(path, header, found, self._home)

    def _answers(self, engine: Engine, request: Request, suite: SuiteFile) -> Iterator[tuple[Key, Completion]]:
        samples, limits = self._samples(suite), request.limits
        settings = (limits.max_new_tokens, limits.batch_size)
        for part in engine.complete_batches(samples, *settings, limits.gold_multiple):
            yield from (((suite.name, number, None), one) for number, one in part.items())
            self._count(request, len(part))
        if not limits.draws:
            return
        drawing = (limits.draws, limits.temperature, limits.seed)
        for drawn in engine.sample_batches(samples, *drawing, *settings, gold_multiple=limits.gold_multiple):
            yield from (((suite.name, number, draw), one) for (number, draw), one in drawn.items())
            self._count(request, len(drawn))

    def _samples(self, suite: SuiteFile) -> Sequence[Sample]:
        content = BlobStore(self._home.blobs).path(suite.blake3).read_bytes()
        return read_suite(content, suite.name).samples

    def _count(self, request: Request, answers: int) -> None:
        self._done += answers
        whole = self._whole(request)
        self._meter.show(request.ref, _share(self._done, whole), f"{self._done} of {whole} answers")
        if time.monotonic() >= self._visit_s:
            self._visit(request)

    def _whole(self, request: Request) -> int:
        return sum(suite.items for suite in request.suites) * (1 + request.limits.draws)

    def _visit(self, request: Request) -> None:
        """Shows the home that somebody is at work; NotFoundError where the work is not wanted any more."""
        try:
            asked = evaluation_requests.ask_server(self._remote)["request"]
        except LinkError as error:
            self._meter.say(f"{error.what}; going on with {request.ref}")
        else:
            if asked is None or asked["id"] != request.id:
                raise NotFoundError(f"{request.ref} is not asked any more", self._remote.url, "nothing is to be done")
        self._visit_s = time.monotonic() + VISIT_S

    def _hand_back(self, request: Request, path: Path) -> None:
        address = f"/api/evaluation-requests/{request.id}/answers"
        try:
            self._remote.retrying(lambda: self._remote.hand_over(address, path))
        except NotFoundError:
            self._meter.say(f"{request.ref}: the answers are not wanted any more")
            return
        except IntegrityError:
            self._refused = request.id
            self._home.disk.remove(path)
            raise
        self._meter.say(f"{request.ref}: {self._whole(request)} answers handed back")

    def _clear(self, but: Path | None) -> None:
        """Removes what was taken for other requests."""
        shelf = self._home.root / SHELF
        shelf.mkdir(exist_ok=True)
        for path in shelf.iterdir():
            if path.is_dir() and path != but:
                sync.give_back(self._home, path)
            elif path.is_file() and but is None:
                self._home.disk.remove(path)


def _request(found: Any, server: str) -> Request:
    try:
        request = Request.model_validate_json(orjson.dumps(found))
    except ValidationError as error:
        raise IntegrityError("the server's answer is no request", server, offers.UNTRUSTED) from error
    if request.format > evaluation_requests.FORMAT or request.engine != ENGINE_VERSION:
        what = f"it wants answers of the engine {request.engine[:32]!r}, this one is {ENGINE_VERSION!r}"
        raise IntegrityError(what, server, "both machines must run the same release")
    return request


def _share(done: int, whole: int) -> float:
    return done / whole if whole else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="stokehold.pipeline.answering")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--once", action="store_true", help="answer what is asked now and end")
    parser.add_argument("--parent-fd", type=int, help="leave when this pipe reads its end")
    arguments = parser.parse_args()
    with told("answering", arguments.home), Meter() as meter:
        home = Home.open(arguments.home)
        if arguments.parent_fd is not None:
            listen(arguments.parent_fd, home.logs / "answering.log", lambda: os.kill(os.getpid(), signal.SIGTERM))
        use_threads(home.config())
        server = sync.remembered(home)
        if server is None:
            raise UsageError("this home is no node", str(home.root), "`stoke node judge http://host:8080 --token T`")
        with home.lock("judging", f"for {server.url}"), Remote(server.url, server.token, meter.say) as remote:
            answering = Answering(home, remote, meter)
            if arguments.once:
                answering.work()
            else:
                meter.say(f"{home.root} judges for {server.url} on {home.config().devices.trainer}; Ctrl-C leaves")
                go_on(answering, meter)


def go_on(answering: Answering, meter: Meter) -> None:
    """Answers request after request until a signal; what is half done then is what a kill leaves."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    work = Repeated(answering.work, meter.say, ASK_S)
    try:
        while True:
            work.look()
            time.sleep(TICK_S)
    except KeyboardInterrupt:
        meter.say("left; `stoke node judge` goes on")


if __name__ == "__main__":
    main()
