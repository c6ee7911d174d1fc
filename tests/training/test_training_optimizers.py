"""Every optimiser: which parameters it takes at which rate, what it remembers, and where it is refused."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stokehold.core.config import TrainingConfig
from stokehold.core.errors import ConfigError, IntegrityError
from stokehold.store.home import Home
from stokehold.training.optimizer import Optimizer, build_optimizer, learning_rate, set_rate
from stokehold.training.state import Lineage, check_locked, open_lineage, take_snapshot, write_snapshot

QUANTISED = ("adamw_8bit", "paged_adamw")


class Small(torch.nn.Module):
    """An embedding, two hidden matrices with vectors, a head: large enough for 8-bit moments."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(16, 128)
        self.up = torch.nn.Linear(128, 320)
        self.down = torch.nn.Linear(320, 128, bias=False)
        self.head = torch.nn.Linear(128, 16, bias=False)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(torch.tanh(self.up(self.embed(ids)))))


def small(device: str = "cpu") -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().to(device)


def step(model: Small, optimizer: Optimizer, config: TrainingConfig, number: int) -> None:
    ids = torch.arange(16, device=model.head.weight.device).roll(number)
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(ids), ids.flip(0)).backward()
    set_rate(optimizer, learning_rate(config, number))
    optimizer.step()


def fresh(home: Home) -> Lineage:
    return open_lineage(home.root / home.config().model.base, home.config())


def test_adamw_gives_the_bits_of_torchs_own() -> None:
    config = TrainingConfig(weight_decay=0.1, warmup_steps=2)
    ours, theirs = small(), small()
    decays = {True: 0.1, False: 0.0}
    groups = [
        {"params": [p for p in theirs.parameters() if (p.ndim >= 2) is matrix], "weight_decay": decays[matrix]}
        for matrix in (True, False)
    ]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=(config.beta1, config.beta2), fused=True)
    optimizer = build_optimizer(ours, config)
    for number in range(5):
        step(ours, optimizer, config, number)
        ids = torch.arange(16).roll(number)
        reference.zero_grad()
        torch.nn.functional.cross_entropy(theirs(ids), ids.flip(0)).backward()
        for group in reference.param_groups:
            group["lr"] = learning_rate(config, number)
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    names = {f"{name}.{key}" for name, _ in ours.named_parameters() for key in ("step", "exp_avg", "exp_avg_sq")}
    assert optimizer.state().keys() == names


def test_muon_takes_the_hidden_matrices_at_a_rate_of_its_own() -> None:
    config = TrainingConfig(
        optimizer="muon", learning_rate=1e-3, muon_learning_rate=2e-2, warmup_steps=4, schedule="wsd", total_steps=10
    )
    model = small()
    optimizer = build_optimizer(model, config)
    step(model, optimizer, config, 0)
    held = {name.rpartition(".")[0] for name in optimizer.state() if name.endswith("momentum_buffer")}
    assert held == {"up.weight", "down.weight"}
    assert {name.rpartition(".")[0] for name in optimizer.state()} == {n for n, _ in model.named_parameters()}
    for number in range(12):
        rate = learning_rate(config, number)
        set_rate(optimizer, rate)
        muon, *others = (group["lr"] for part in optimizer.parts for group in part.optimizer.param_groups)
        assert muon == pytest.approx(20 * rate)
        assert others == [rate] * len(others)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_what_an_optimiser_remembers_is_all_it_needs(kind: str) -> None:
    going_on_is_exact(TrainingConfig(optimizer=kind, warmup_steps=1, weight_decay=0.01), "cpu")


def going_on_is_exact(config: TrainingConfig, device: str) -> None:
    straight = small(device)
    optimizer = build_optimizer(straight, config)
    resumed = None
    for number in range(6):
        if number == 3:
            resumed = small(device)
            resumed.load_state_dict(straight.state_dict())
            again = build_optimizer(resumed, config)
            again.load_state({name: tensor.clone() for name, tensor in optimizer.state().items()}, "here")
        step(straight, optimizer, config, number)
        if resumed is not None:
            step(resumed, again, config, number)
    assert resumed is not None
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert optimizer.state().keys() == again.state().keys()


def test_a_parameter_without_a_gradient_has_nothing_to_remember() -> None:
    config = TrainingConfig()
    model = small()
    optimizer = build_optimizer(model, config)
    model.down.weight.grad = torch.ones_like(model.down.weight)
    optimizer.step()
    state = optimizer.state()
    assert {name.rpartition(".")[0] for name in state} == {"down.weight"}
    build_optimizer(small(), config).load_state(state, "here")
    del state["down.weight.exp_avg"]
    with pytest.raises(IntegrityError, match=r"optimiser state lacks \['exp_avg'\].*down\.weight"):
        build_optimizer(small(), config).load_state(state, "here")


@pytest.mark.parametrize("before", ["adamw", "muon"])
def test_another_optimiser_than_the_checkpoints_is_refused(
    make_home: Callable[..., Home], tmp_path: Path, before: str
) -> None:
    home = make_home(training={"optimizer": before})
    write_snapshot(take_snapshot(fresh(home)), tmp_path)
    other = make_home(training={"optimizer": "muon" if before == "adamw" else "adamw"})
    with pytest.raises(ConfigError, match=rf"training\.optimizer.*set it back to '{before}'"):
        open_lineage(tmp_path, other.config())


def test_a_checkpoint_from_before_there_was_a_choice_is_adamws(make_home: Callable[..., Home], tmp_path: Path) -> None:
    home = make_home()
    write_snapshot(take_snapshot(fresh(home)), tmp_path)
    state = tmp_path / "trainer.json"
    state.write_text(state.read_text().replace('"training.optimizer": "adamw"', '"data.profile": ""'))
    check_locked(tmp_path, home.config())
    with pytest.raises(ConfigError, match=r"training\.optimizer"):
        check_locked(tmp_path, make_home(training={"optimizer": "muon"}).config())


@pytest.mark.parametrize("kind", QUANTISED)
def test_without_cuda_it_is_refused_with_the_fix(make_home: Callable[..., Home], kind: str) -> None:
    home = make_home(training={"optimizer": kind})
    with pytest.raises(ConfigError, match=rf"this needs a CUDA device.*training\.optimizer = .{kind}. on cpu.*devices"):
        fresh(home)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_and_paged_moments_are_all_that_is_needed(kind: str) -> None:
    going_on_is_exact(TrainingConfig(optimizer=kind, warmup_steps=1, weight_decay=0.01), "cuda:0")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_large_moments_are_of_eight_bits() -> None:
    model, config = small("cuda:0"), TrainingConfig(optimizer="adamw_8bit")
    optimizer = build_optimizer(model, config)
    step(model, optimizer, config, 0)
    assert {name for name, tensor in optimizer.state().items() if tensor.dtype == torch.uint8} == {
        f"{name}.weight.{key}" for name in ("up", "down") for key in ("state1", "state2")
    }


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_small_updates_of_half_precision_weights_are_not_lost(kind: str) -> None:
    """At 1e-5 an update is below the last bit of almost every weight; after many steps they must have added up."""
    torch.manual_seed(0)
    wide = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16))
    narrow = copy.deepcopy(wide).to(torch.bfloat16)
    wide.load_state_dict({name: value.float() for name, value in narrow.state_dict().items()})
    config = TrainingConfig(optimizer=kind, learning_rate=1e-5, muon_learning_rate=1e-5)  # type: ignore[arg-type]
    start = {name: p.detach().clone() for name, p in wide.named_parameters()}
    both = [(model, build_optimizer(model, config)) for model in (wide, narrow)]
    for _ in range(1000):
        for model, optimizer in both:
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    for (name, expected), found in zip(wide.named_parameters(), narrow.parameters(), strict=True):
        moved = (expected - start[name]).abs()
        limit = torch.finfo(torch.bfloat16).eps * expected.abs()
        assert bool(((found.float() - expected).abs() <= limit).all()), name
        if name != "1.bias":
            assert float(moved.detach().max()) > 1e-4


def test_half_precision_training_resumes_with_the_bits_that_the_weights_do_not_hold() -> None:
    torch.manual_seed(0)
    straight = torch.nn.Linear(8, 8).to(torch.bfloat16)
    config = TrainingConfig(learning_rate=1e-4)
    optimizer = build_optimizer(straight, config)
    drawn = torch.Generator().manual_seed(1)
    slopes = [torch.randn(8, 8, generator=drawn).to(torch.bfloat16) for _ in range(20)]

    def steps(model: torch.nn.Linear, taken: Optimizer, part: list[torch.Tensor]) -> None:
        for slope in part:
            model.weight.grad = slope.clone()
            taken.step()

    steps(straight, optimizer, slopes[:10])
    resumed = copy.deepcopy(straight)
    other = build_optimizer(resumed, config)
    other.load_state({name: tensor.clone() for name, tensor in optimizer.state().items()}, "here")
    steps(straight, optimizer, slopes[10:])
    steps(resumed, other, slopes[10:])
    assert torch.equal(straight.weight, resumed.weight)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.state().values(), other.state().values(), strict=True))
