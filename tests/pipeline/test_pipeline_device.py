"""One thread owns the device; what is measured between two steps changes no bit of what is learned."""

import threading
from collections.abc import Callable

import pytest
from bench import Bench

from stokehold.core.records import JobState
from stokehold.pipeline.device import DeviceQueue, Leaving
from stokehold.store.db import journal
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import versions
from tiny_world import facts, held_out_facts, write_jsonl


def asked(device: DeviceQueue, tasks: list[Callable[[], object]]) -> list[object]:
    """Hands the tasks over from threads of their own, in order; returns what each got, when all have."""
    got: dict[int, object] = {}

    def ask(number: int, task: Callable[[], object]) -> None:
        try:
            got[number] = device.run(task)
        except ArithmeticError as error:
            got[number] = error

    threads = [threading.Thread(target=ask, args=pair, daemon=True) for pair in enumerate(tasks)]
    for number, thread in enumerate(threads):
        thread.start()
        while device._tasks.qsize() <= number:
            pass  # so that they stand in line in this order
    device.serve(lambda: len(got) == len(tasks))
    return [got[number] for number in range(len(tasks))]


def test_tasks_run_one_after_the_other_on_the_serving_thread() -> None:
    order: list[int] = []
    names: set[str] = set()

    def task(number: int) -> Callable[[], int]:
        def run() -> int:
            order.append(number)
            names.add(threading.current_thread().name)
            return number

        return run

    assert asked(DeviceQueue(), [task(number) for number in range(5)]) == [0, 1, 2, 3, 4]
    assert order == [0, 1, 2, 3, 4]
    assert names == {threading.current_thread().name}


def test_an_exception_goes_to_who_asked_and_the_next_task_runs() -> None:
    first, second = asked(DeviceQueue(), [lambda: 1 // 0, lambda: "fine"])
    assert isinstance(first, ZeroDivisionError)
    assert second == "fine"


def test_an_errand_runs_in_the_middle_of_a_task_that_asks_for_it_and_on_its_thread() -> None:
    device, done, got = DeviceQueue(), [], []

    def errand() -> str:
        done.append(threading.current_thread().name)
        return "told"

    def task() -> str:
        done.append("before")
        threading.Thread(target=lambda: got.append(device.run_between(errand)), daemon=True).start()
        while not done[1:]:
            device.errands()
        return "result"

    def ask() -> None:
        got.append(device.run_then(task, lambda result: done.append(f"then {result}") or result))

    threading.Thread(target=ask, daemon=True).start()
    device.serve(lambda: len(got) == 2)
    assert done == ["before", threading.current_thread().name, "then result"]
    assert sorted(got) == ["result", "told"]


def test_an_errand_goes_before_the_tasks_that_wait() -> None:
    device, order = DeviceQueue(), []
    for wait, name in ((device.run, "task"), (device.run_between, "errand")):
        threading.Thread(target=wait, args=(lambda name=name: order.append(name),), daemon=True).start()
    while device._tasks.empty() or device._errands.empty():
        pass
    device.serve(lambda: len(order) == 2)
    assert order == ["errand", "task"]


@pytest.mark.parametrize("leave_by", ["flag", "exception"])
def test_what_leaving_cut_short_is_nobodys_result(leave_by: str) -> None:
    device, leaving, ended = DeviceQueue(), threading.Event(), threading.Event()

    def cut_short() -> str:
        leaving.set()
        if leave_by == "exception":
            raise Leaving
        return "done"

    def ask() -> None:
        device.run_then(cut_short, lambda _result: ended.set())
        ended.set()

    threading.Thread(target=ask, daemon=True).start()
    device.serve(leaving.is_set)
    assert not ended.wait(0.05)


def trained(home: Home) -> Bench:
    one = Bench(home)
    try:
        assert one.run(one.dataset("facts.jsonl", facts(150))) is JobState.COMPLETED
    finally:
        one.close()
    return one


def test_measuring_changes_no_bit(make_home: Callable[..., Home]) -> None:
    plain, watched = (
        make_home(),
        make_home(training={"sample_steps": 2, "eval_steps": 3}, telemetry={"interval_s": 0.01}),
    )
    write_jsonl(watched.suites / "facts.jsonl", held_out_facts()[:12])
    hashes = [trained(home).weights() for home in (plain, watched)]
    assert hashes[0] == hashes[1]
    db = Bench(watched).db
    assert len(journal.latest_samples(db, 100)) > 3
    assert len(evaluations.list_evaluations(watched, db)) > 2
    assert versions.alias(db)
