"""One optimiser step: packed documents are isolated, accumulation is exact, and what is not finite changes nothing."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from model_families import family_model
from stokehold.core.errors import DivergenceError
from stokehold.core.records import Sample
from stokehold.data.batches import Batch, Batches, Cursor
from stokehold.data.formats import Parsed, parse_line, to_row
from stokehold.data.lines import Line, read_lines
from stokehold.store.home import Home
from stokehold.training import attention
from stokehold.training.forward import project
from stokehold.training.objectives import weighted
from stokehold.training.optimizer import learning_rate
from stokehold.training.state import Lineage, open_lineage
from stokehold.training.step import accumulate, finish_step, head_of, optimiser_step, predict, trained_tokens
from tiny_world import facts, write_jsonl


@pytest.fixture
def lineage(make_home: Callable[..., Home]) -> Lineage:
    home = make_home()
    return open_lineage(home.root / home.config().model.base, home.config())


def batches(lineage: Lineage, folder: Path, capacity: int = 256) -> Iterator[Batch]:
    raw = write_jsonl(folder / "raw.jsonl", facts(60))
    samples: list[Sample] = []
    for line in read_lines(raw, 10_000):
        assert isinstance(line, Line)
        parsed = parse_line(line, "raw.jsonl")
        assert isinstance(parsed, Parsed)
        samples.append(parsed.sample)
    rows = write_jsonl(folder / "rows.jsonl", [to_row(sample) for sample in samples])
    options = {"window_rows": 64, "max_length": 128, "seed": 0, "epochs": 1, "cursor": Cursor.start()}
    with Batches(rows, lineage.tokenizer, capacity=capacity, **options) as found:
        yield from found


def parts(batch: Batch) -> Iterator[slice]:
    start = 0
    for length in batch.lengths:
        yield slice(start, start + length)
        start += length


def test_a_packed_document_has_the_logits_of_the_document_alone(lineage: Lineage, tmp_path: Path) -> None:
    batch = next(batches(lineage, tmp_path))
    assert len(batch.lengths) > 3
    together = predict(lineage, batch).logits
    reference = open_lineage(lineage.source, lineage.config).model
    reference.set_attn_implementation("eager")
    alone = []
    for part in parts(batch):
        ids = torch.from_numpy(batch.ids[part])
        logits = reference(input_ids=ids[None]).logits[0]
        alone.append(logits[np.flatnonzero(batch.trained[part]) - 1])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_with_cross_entropy_alone_the_loss_is_the_models_own(lineage: Lineage, tmp_path: Path) -> None:
    batch = next(batches(lineage, tmp_path, capacity=1))
    ids = torch.from_numpy(batch.ids)
    labels = torch.where(torch.from_numpy(batch.trained), ids, -100)
    reference = open_lineage(lineage.source, lineage.config).model
    reference.set_attn_implementation("eager")
    own = float(reference(input_ids=ids[None], labels=labels[None]).loss.detach())
    components = weighted(predict(lineage, batch), lineage.config.objectives)
    assert list(components) == ["cross_entropy"]
    assert float(components["cross_entropy"].detach()) / int(batch.trained.sum()) == pytest.approx(own, abs=1e-6)


def test_accumulated_batches_give_the_gradient_of_one_big_batch(lineage: Lineage, tmp_path: Path) -> None:
    small = list(batches(lineage, tmp_path, capacity=128))
    whole = list(batches(lineage, tmp_path, capacity=100_000))
    assert len(small) > 4
    assert len(whole) == 1
    gradients = []
    for group in (small, whole):
        fresh = open_lineage(lineage.source, lineage.config)
        result = optimiser_step(fresh, group)
        gradients.append([p.grad.clone() for p in fresh.model.parameters() if p.grad is not None])
        assert sum(result.components.values()) == pytest.approx(result.loss, abs=1e-12)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_accumulating_again_forgets_what_was_there(lineage: Lineage, tmp_path: Path) -> None:
    first, second = list(batches(lineage, tmp_path))[:2]
    count = trained_tokens([second])
    accumulate(lineage, [second], count)
    alone = [p.grad.clone() for p in lineage.model.parameters() if p.grad is not None]
    accumulate(lineage, [first], trained_tokens([first]))
    accumulate(lineage, [second], count)
    again = [p.grad for p in lineage.model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))
    assert lineage.step == 0


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_only_gradients_longer_than_allowed_are_scaled_down(lineage: Lineage, tmp_path: Path, share: float) -> None:
    group = [next(batches(lineage, tmp_path))]
    sums = accumulate(lineage, group, trained_tokens(group))
    before = [p.grad.clone() for p in lineage.model.parameters() if p.grad is not None]
    norm = float(torch.stack([one.norm() for one in before]).norm())
    training = lineage.config.training.model_copy(update={"max_grad_norm": share * norm})
    lineage.config = lineage.config.model_copy(update={"training": training})
    result = finish_step(lineage, group, sums, trained_tokens(group))
    assert result.grad_norm == pytest.approx(norm, rel=1e-6)
    after = [p.grad for p in lineage.model.parameters() if p.grad is not None]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one * min(share, 1.0), rtol=1e-5, atol=0)


def test_the_head_is_found_without_a_trace(lineage: Lineage) -> None:
    before, modes = torch.get_rng_state(), [module.training for module in lineage.model.modules()]
    assert head_of(lineage.model) is lineage.model.get_output_embeddings()
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in lineage.model.modules()] == modes


@pytest.mark.parametrize(("family", "bare"), [("qwen3", True), ("gemma2", False), ("granite", False)])
def test_a_head_with_a_cap_or_a_scale_is_not_taken_for_a_matrix(family: str, bare: bool) -> None:
    model = family_model(family)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    found = head_of(model)
    assert isinstance(found, torch.nn.Linear) == bare
    states = torch.randn(3, model.config.hidden_size)
    assert found is not None
    torch.testing.assert_close(found(states), project(model, states))


def test_entropy_is_that_of_the_predictions(lineage: Lineage, tmp_path: Path) -> None:
    batch = next(batches(lineage, tmp_path))
    logits = predict(lineage, batch).logits.detach()
    wanted = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert optimiser_step(lineage, [batch]).token_entropy == pytest.approx(float(wanted), rel=1e-5)


def test_what_is_not_finite_changes_no_weight(lineage: Lineage, tmp_path: Path) -> None:
    batch = next(batches(lineage, tmp_path))
    with torch.no_grad():
        lineage.model.get_output_embeddings().weight[7] = float("nan")
    before = [p.clone() for p in lineage.model.parameters()]
    with pytest.raises(DivergenceError, match=batch.fingerprint):
        optimiser_step(lineage, [batch])
    assert lineage.step == 0
    for one, other in zip(before, lineage.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, atol=0, rtol=0)


@pytest.mark.parametrize("schedule", ["constant", "wsd", "cosine"])
def test_the_rate_depends_on_configuration_and_step_alone(schedule: str) -> None:
    from stokehold.core.config import parse_config

    tree = {"schedule": schedule, "total_steps": 100, "warmup_steps": 10, "learning_rate": 1.0, "floor_share": 0.1}
    config = parse_config({"training": tree}).training
    rates = [learning_rate(config, step) for step in range(150)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1.0
    expected_end = 1.0 if schedule == "constant" else 0.1
    assert rates[100] == rates[149] == pytest.approx(expected_end)
    assert all(a >= b for a, b in pairwise(rates[10:]))
