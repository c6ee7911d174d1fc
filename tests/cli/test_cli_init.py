"""`stoke init`: a base model from a folder or from a hub over real HTTP, checked, pinned and imported."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE
from safetensors.numpy import save_file

from hub_server import COMMIT, Hub, serving
from stokehold.core.errors import InputError, IntegrityError
from stokehold.store.files import hash_file, read_manifest
from stokehold.store.home import Home
from stokehold.store.models.bases import import_base, licence

MODEL = "somebody/tiny"
CARD = "---\nlanguage: en\nlicense: apache-2.0\n---\n# A tiny model\nlicense: this line is text\n"

Init = Callable[..., subprocess.CompletedProcess[str]]
MakeHome = Callable[..., Home]


@pytest.fixture
def model(tiny_base: Path, tmp_path: Path) -> Path:
    """A model as a hub holds it: beside what is wanted lie a pickle, code, and another form of the weights."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    (folder / "README.md").write_text(CARD)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04 a pickle")
    (folder / "modeling_tiny.py").write_text("raise SystemExit('code of a stranger')\n")
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    return folder


@pytest.fixture
def init(tmp_path: Path, environment: dict[str, str]) -> Init:
    """`stoke init home ARGUMENTS` in a process of its own, with a cache of its own."""

    def run(hub: Hub, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in environment.items() if not name.startswith(("HF_", "HUGGING"))}
        given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1", **variables}
        command = [Path(sys.executable).with_name("stoke"), "init", tmp_path / "home", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=kept | given, check=False, timeout=120)

    return run


def test_a_model_of_the_hub_is_fetched_pinned_and_imported(init: Init, model: Path, tmp_path: Path) -> None:
    with serving(Hub({MODEL: model})) as hub:
        ended = init(hub, "--model", MODEL, "--json")
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    base = tmp_path / "home" / answer["base"]
    assert (answer["source"], answer["revision"], answer["licence"]) == (MODEL, COMMIT, "apache-2.0")
    assert hash_file(base / "model.safetensors") == hash_file(model / "model.safetensors")
    settings = Home.open(tmp_path / "home").config().model
    assert (settings.source, settings.revision, settings.licence) == (MODEL, COMMIT, "apache-2.0")
    manifest = read_manifest(base)
    assert (manifest["source"], manifest["revision"], manifest["licence"]) == (MODEL, COMMIT, "apache-2.0")
    fetched = {name for name, _ in hub.transfers()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= fetched
    assert fetched.isdisjoint({"pytorch_model.bin", "modeling_tiny.py", "consolidated.safetensors"})
    assert not {path.name for path in base.iterdir()} & {"pytorch_model.bin", "modeling_tiny.py"}
    assert ended.stderr.startswith(f"fetching {MODEL}: ")
    assert "\r" not in ended.stderr
    assert "\x1b" not in ended.stderr

    shutil.rmtree(tmp_path / "home")
    again = init(hub, "--model", MODEL, "--json")  # the server is gone, the cache is not
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == answer


def test_a_transfer_that_breaks_goes_on_where_it_broke(init: Init, model: Path, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).standard_normal(3 * DOWNLOAD_CHUNK_SIZE // 8)
    save_file({"model.layers.0.mlp.up_proj.weight": drawn.reshape(2, -1)}, model / "model.safetensors")
    broken = 2 * DOWNLOAD_CHUNK_SIZE + 1234
    with serving(Hub({MODEL: model}, breaks={"model.safetensors": broken})) as hub:
        ended = init(hub, "--model", MODEL, "--json")
    assert ended.returncode == 0, ended.stderr
    assert hub.transfers("model.safetensors") == [
        ("model.safetensors", None),
        ("model.safetensors", f"bytes={2 * DOWNLOAD_CHUNK_SIZE}-"),
    ]
    base = tmp_path / "home" / json.loads(ended.stdout)["base"]
    assert hash_file(base / "model.safetensors") == hash_file(model / "model.safetensors")
    told = [line for line in ended.stderr.splitlines() if line.startswith(f"fetching {MODEL}: ")]
    assert len(told) >= 3


def test_a_licence_to_accept_and_the_token_that_did(init: Init, model: Path, tmp_path: Path) -> None:
    with serving(Hub({MODEL: model}, token="hf_right")) as hub:
        refused = init(hub, "--model", MODEL)
        wrong = init(hub, "--model", MODEL, HF_TOKEN="hf_wrong")
        assert not (tmp_path / "home").exists()
        assert hub.transfers() == []
        let_in = init(hub, "--model", MODEL, HF_TOKEN="hf_right")
    assert refused.returncode == 1
    assert f"accept it at {hub.url}/{MODEL}, and set HF_TOKEN" in refused.stderr
    assert "with the account of your HF_TOKEN" in wrong.stderr
    assert "hf_wrong" not in wrong.stderr
    assert let_in.returncode == 0, let_in.stderr
    assert "licence   apache-2.0" in let_in.stdout
    assert f"{MODEL} at {COMMIT[:12]}" in let_in.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nobody/nothing"], "no such model on the hub"),
        (["--model", MODEL, "--revision", "v9"], "no such branch, tag or commit"),
        (["--model", "somebody/pickles"], "no safetensors weights in this repository"),
    ],
    ids=["model", "revision", "pickles"],
)
def test_what_the_hub_does_not_have_leaves_nothing(
    init: Init, model: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    pickles = tmp_path / "pickles"
    shutil.copytree(model, pickles, ignore=shutil.ignore_patterns("*.safetensors"))
    with serving(Hub({MODEL: model, "somebody/pickles": pickles})) as hub:
        ended = init(hub, *arguments)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"stoke: {said}")
    assert ended.stderr.count("\n") == 1
    assert hub.transfers() == []
    assert not (tmp_path / "home").exists()


def test_content_that_is_not_what_the_hub_promised_is_refused(init: Init, model: Path, tmp_path: Path) -> None:
    with serving(Hub({MODEL: model}, spoilt=frozenset({"model.safetensors"}))) as hub:
        ended = init(hub, "--model", MODEL)
        assert ended.returncode == 1
        assert "not what the hub says it is" in ended.stderr
        assert not (tmp_path / "home").exists()
        hub.spoilt = frozenset()
        assert init(hub, "--model", MODEL, "--revision", COMMIT).returncode == 0
    assert len(hub.transfers("model.safetensors")) == 2
    assert len(hub.transfers("tokenizer.json")) == 1


def test_out_of_reach_says_how_to_bring_the_folder(init: Init) -> None:
    ended = init(Hub({}, url="http://127.0.0.1:9"), "--model", "Qwen/Qwen3-0.6B")
    assert ended.returncode == 1
    assert ended.stderr.startswith("stoke: the hub is out of reach")
    assert "hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B" in ended.stderr


def test_a_folder_has_no_revision(stoke: Any, tiny_base: Path, tmp_path: Path) -> None:
    ended = stoke("init", tmp_path / "home", "--model", tiny_base, "--revision", "main")
    assert ended.code == 2
    assert "only a model of the hub has revisions" in ended.error
    assert not (tmp_path / "home").exists()


def test_a_folder_tells_its_size_its_licence_and_what_comes_next(stoke: Any, model: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shown = stoke("init", home, "--model", model, "--method", "qlora").out
    lines = [line.split(maxsplit=1) for line in shown.splitlines()]
    said = {words[0]: words[1] for words in lines[1:] if len(words) == 2}
    assert str(model) in said["model"]
    assert "parameters" in said["model"]
    assert said["licence"] == "apache-2.0"
    assert said["training"] == "qlora in float32 on cpu"
    assert said["memory"].startswith("about ")
    assert said["next"] == f"stoke preflight --home {home}"
    assert "CUDA only" in said["note"]
    assert Home.open(home).config().model.method == "qlora"


def test_parameters_are_those_of_the_weights(stoke: Any, tiny_base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    answer = stoke("init", tmp_path / "home", "--model", tiny_base, "--json").answer
    loaded = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert answer["parameters"] == sum(parameter.numel() for parameter in loaded.parameters())


def test_weights_that_end_early_or_lack_a_shard_are_refused(make_home: MakeHome, model: Path) -> None:
    home = make_home()
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    for content, said in ((whole[:-1], "bytes instead of"), (b"", "cut short"), (b"\xff" * 64, "cut short")):
        weights.write_bytes(content)
        with pytest.raises(IntegrityError, match=said):
            import_base(home, model)
    weights.rename(model / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(IntegrityError, match="1 of 2 shards are missing"):
        import_base(home, model)
    (model / "config.json").unlink()
    with pytest.raises(InputError, match="no config"):
        import_base(home, model)


@pytest.mark.parametrize(
    ("card", "named"),
    [
        (CARD, "apache-2.0"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ("# no front matter\nlicense: mit\n", ""),
        ("", ""),
    ],
)
def test_the_licence_is_what_the_card_names_in_front(tmp_path: Path, card: str, named: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert licence(tmp_path) == named
