"""lm-evaluation-harness against our endpoint, on a task of this machine: what it measures is what we measure."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from test_inference_server import HTTP, TOKEN, add_version, serving
from transformers import PreTrainedModel

from stokehold.core.config import Config
from stokehold.core.records import Completion, Message, Sample
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.evaluation.judge import judge_suite
from stokehold.evaluation.logs.items import standard_error
from stokehold.inference.engine import Engine
from stokehold.inference.scoring import text_logprobs
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.models import versions

MANUAL = Path(__file__).parents[2] / "docs" / "evaluation.md"
MAX_NEW_TOKENS = 24
MODEL = {"model": "champion", "num_concurrent": 1, "max_retries": 1}
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
END = "<|im_end|>"
CONTEXT = 160


@dataclass(frozen=True)
class Task:
    """Items, what the engine answers to them itself, and a served copy of its weights."""

    samples: list[Sample]
    completions: list[Completion]
    engine: Engine
    tokenizer: Path
    url: str


@pytest.fixture(scope="module")
def task(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: ChatTokenizer,
    tokenizer_folder: Path,
    samples: list[Sample],
) -> Iterator[Task]:
    """About half of the items have the model's own answer for gold, the others another."""
    engine = Engine(make_model(seed=1), tokenizer)
    asked = [sample for sample in samples if len(sample.messages) == 2]
    said = engine.complete(asked, MAX_NEW_TOKENS, batch_size=8)
    items = [
        replace(sample, messages=(sample.messages[0], Message("assistant", done.text)))
        if number % 2 and done.text and done.text == done.text.strip()
        else sample
        for number, (sample, done) in enumerate(zip(asked, said, strict=True))
    ]
    home = Home.create(tmp_path_factory.mktemp("served") / "home", Config())
    db = connect(home)
    versions.set_alias(home, db, "champion", add_version(home, db, engine.model, tokenizer_folder, 1).name)
    with serving(home, db) as (url, _):
        yield Task(items, engine.complete(items, MAX_NEW_TOKENS, batch_size=8), engine, tokenizer_folder, url)
    db.close()


def documented() -> tuple[dict[str, Any], list[str]]:
    """The task and the command of the manual: settings, and words behind `lm_eval`."""
    text = MANUAL.read_text()
    blocks = [re.search(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for kind in ("yaml", "sh")]
    task, command = [block[1] for block in blocks if block]
    words = shlex.split(command.replace("\\\n", " "))
    return yaml.safe_load(task), words[words.index("lm_eval") + 1 :]


def write_task(folder: Path, samples: list[Sample], **settings: Any) -> None:
    """The manual's task on these items, changed by `settings`."""
    rows = [{"question": s.question[0].content, "answer": s.gold, "id": s.id} for s in samples]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data_files": {"test": str(folder / "items.jsonl")}, "cache_dir": str(folder / "cache")}
    facts = documented()[0] | {"dataset_kwargs": data} | settings
    (folder / "local.yaml").write_text(yaml.safe_dump(facts))


def test_accuracy_and_standard_error_are_those_of_lm_eval(task: Task, tmp_path: Path) -> None:
    write_task(tmp_path, task.samples)
    command = [word.replace("http://127.0.0.1:8090", task.url) for word in documented()[1]]
    assert f"base_url={task.url}/v1/chat/completions" in command[command.index("--model_args") + 1]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "OPENAI_API_KEY": TOKEN}
    ended = subprocess.run(
        [sys.executable, "-m", "lm_eval", *command],
        cwd=tmp_path,
        env={**os.environ, **offline, **alone},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]["local"]
    (file,) = (tmp_path / "out").rglob("samples_local_*.jsonl")
    samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    ours, scores = judge_suite("local", task.samples, task.completions)
    right = sum(score.exact for score in scores)
    assert 5 < right < len(task.samples) - 5
    assert [sample["resps"][0][0] for sample in samples] == [done.text for done in task.completions]
    assert [sample["exact_match"] == 1 for sample in samples] == [score.exact for score in scores]
    assert results["exact_match,none"] == pytest.approx(ours.exact, abs=1e-12)
    assert results["exact_match_stderr,none"] == pytest.approx(standard_error(right, len(scores)), abs=1e-12)


def test_likelihoods_of_gold_answers_are_those_of_lm_eval(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval counts the line break that ends a chat prompt to the answer: ours is that of the break and the answer."""
    monkeypatch.setenv("OPENAI_API_KEY", TOKEN)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    write_task(
        tmp_path,
        task.samples,
        output_type="loglikelihood",
        generation_kwargs=None,
        doc_to_target="{{answer}}" + END,
        target_delimiter="",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    found = simple_evaluate(
        model="local-completions",
        model_args={
            **MODEL,
            "base_url": f"{task.url}/v1/completions",
            "tokenizer": str(task.tokenizer),
            "tokenizer_backend": "huggingface",
            "max_length": CONTEXT,
        },
        tasks=["local"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"]["local"], key=lambda sample: sample["doc_id"])
    prompts = [task.engine.tokenizer.prompt_ids(sample.question) for sample in task.samples]
    breaks = [text_logprobs(task.engine, ids) for ids in prompts]
    assert {task.engine.tokenizer.decode(ids[-1:]) for ids in prompts} == {"\n"}
    ours = [
        one.logprobs[-1] - (done.gold_nll or 0.0) * (done.gold_tokens or 0)
        for one, done in zip(breaks, task.completions, strict=True)
    ]
    assert [sample["filtered_resps"][0][0] for sample in samples] == pytest.approx(ours, abs=1e-3)


def ask(task: Task, **fields: Any) -> httpx.Response:
    body = {"model": "champion", "echo": True, "logprobs": 1, "max_tokens": 0, "temperature": 0, **fields}
    return HTTP.post(f"{task.url}/v1/completions", json=body, headers=AUTHORIZED)


def test_a_text_comes_back_with_the_likelihood_of_each_token_whatever_its_length(task: Task) -> None:
    engine = task.engine
    texts = [engine.tokenizer.prompt_ids([Message("user", "the quick brown fox " * many)]) for many in (1, 9)]
    answer = ask(task, prompt=texts, max_tokens=1).json()
    assert answer["usage"] == {
        "prompt_tokens": sum(map(len, texts)),
        "completion_tokens": 2,
        "total_tokens": sum(map(len, texts)) + 2,
    }
    for ids, choice in zip(texts, answer["choices"], strict=True):
        found = choice["logprobs"]
        assert found["token_logprobs"][0] is None
        assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["top_logprobs"]) == len(ids) + 1
        assert [choice["text"][at : at + 1] for at in found["text_offset"]] == [one[:1] for one in found["tokens"]]
        pairs = zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True)
        assert all(mine <= max(best.values()) for mine, best in pairs)
    alone = [ask(task, prompt=ids).json()["choices"][0]["logprobs"]["token_logprobs"] for ids in texts]
    together = [choice["logprobs"]["token_logprobs"][:-1] for choice in answer["choices"]]
    assert alone == together


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"echo": False}, "only likelihoods"),
        ({"max_tokens": 2}, "only likelihoods"),
        ({"max_tokens": 1, "temperature": 1}, "only likelihoods"),
        ({"prompt": "text"}, "send token ids"),
        ({"prompt": []}, "not a text"),
        ({"prompt": [-1]}, "not a text"),
        ({"prompt": [10**9]}, "not a text"),
        ({"prompt": [5] * CONTEXT}, "does not fit"),
        ({"stream": True}, "stream"),
    ],
)
def test_what_is_not_served_is_refused_with_its_reason(task: Task, fields: dict[str, Any], said: str) -> None:
    refused = ask(task, **{"prompt": [5, 6], **fields})
    assert refused.status_code == 400
    assert re.search(said, refused.json()["error"]["message"])
    assert ask(task, prompt=[5, 6]).status_code == 200
