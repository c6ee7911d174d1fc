"""A checkpoint states what it depends on: other settings are refused by name, other arithmetic is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stokehold.core.config import LOCKED_KEYS, Config
from stokehold.core.errors import ConfigError, IntegrityError
from stokehold.store.home import Home
from stokehold.store.models.checkpoints import publish_checkpoint
from stokehold.training.cuda import check_device, wants_determinism
from stokehold.training.state import Lineage, check_locked, open_lineage, take_snapshot, write_snapshot


def fresh(home: Home) -> Lineage:
    return open_lineage(home.root / home.config().model.base, home.config())


def saved(home: Home, lineage: Lineage) -> Path:
    return Path(
        publish_checkpoint(home, lineage.step, lambda folder: write_snapshot(take_snapshot(lineage), folder), {}).path
    )


def changed(config: Config, key: str) -> Config:
    section, name = key.split(".")
    table = getattr(config, section)
    value = getattr(table, name)
    other = value + 1 if isinstance(value, int) else ("other",) if isinstance(value, tuple) else f"{value}-other"
    return config.model_copy(update={section: table.model_copy(update={name: other})})


@pytest.mark.parametrize("key", LOCKED_KEYS)
def test_a_locked_key_is_refused_by_its_name(make_home: Callable[..., Home], key: str) -> None:
    home = make_home()
    folder = saved(home, fresh(home))
    check_locked(folder, home.config())
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        open_lineage(folder, changed(home.config(), key))


def test_other_keys_may_change(make_home: Callable[..., Home]) -> None:
    home = make_home()
    folder = saved(home, fresh(home))
    open_lineage(folder, changed(home.config(), "training.checkpoint_steps"))


def test_another_thread_count_is_told(make_home: Callable[..., Home]) -> None:
    home, before = make_home(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        folder = saved(home, fresh(home))
        assert open_lineage(folder, home.config()).differences == ()
        torch.set_num_threads(2)
        assert open_lineage(folder, home.config()).differences == ("threads 1 -> 2",)
    finally:
        torch.set_num_threads(before)


def test_what_older_checkpoints_do_not_record_is_no_difference(make_home: Callable[..., Home]) -> None:
    home = make_home()
    folder = saved(home, fresh(home))
    state = json.loads((folder / "trainer.json").read_text())
    assert {"threads", "torch", "cpu", "cpu_capability", "mkl", "mkldnn", "deterministic", "cuda"} <= state.keys()
    added = ("cpu", "cpu_capability", "mkl", "mkldnn", "deterministic", "cuda", "optimizer_since", "merged", "base")
    older = {key: value for key, value in state.items() if key not in added}
    (folder / "trainer.json").write_text(json.dumps(older))
    assert open_lineage(folder, home.config()).differences == ()
    (folder / "trainer.json").write_text(json.dumps({**older, "cpu": "another"}))
    (different,) = open_lineage(folder, home.config()).differences
    assert different == f"cpu another -> {state['cpu']}"


def test_exactness_on_cuda_is_refused_where_the_process_cannot_give_it(
    make_home: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_home(training={"deterministic": True}, devices={"trainer": "cuda:0"}).config()
    assert wants_determinism(config)
    assert not wants_determinism(make_home(training={"deterministic": True}).config())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG is not set.*:4096:8"):
        check_device(config)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    check_device(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusal is for machines without CUDA")
def test_a_device_that_is_not_there_is_told(make_home: Callable[..., Home]) -> None:
    with pytest.raises(ConfigError, match=r"no CUDA device here.*devices\.trainer = 'cuda:0'"):
        fresh(make_home(devices={"trainer": "cuda:0"}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_devices_random_state_goes_with_the_checkpoint(make_home: Callable[..., Home]) -> None:
    home = make_home(devices={"trainer": "cuda:0"})
    lineage = fresh(home)
    torch.rand(5, device="cuda:0")
    folder = saved(home, lineage)
    expected = torch.rand(3, device="cuda:0")
    open_lineage(folder, home.config())
    assert torch.equal(torch.rand(3, device="cuda:0"), expected)


def test_a_checkpoint_is_whole_though_the_folder_it_came_from_is_gone(make_home: Callable[..., Home]) -> None:
    home = make_home()
    source = saved(home, fresh(home))
    lineage = open_lineage(source, home.config())
    shutil.rmtree(source)
    lineage.step = 1
    folder = saved(home, lineage)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() == lineage.model.num_parameters()


def test_a_checkpoint_without_its_optimiser_state_is_refused(make_home: Callable[..., Home]) -> None:
    home = make_home()
    lineage = fresh(home)
    lineage.step = 5  # steps were taken, and yet nothing was remembered of them
    with pytest.raises(IntegrityError, match="optimiser state lacks"):
        open_lineage(saved(home, lineage), home.config())
