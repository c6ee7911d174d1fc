"""An evaluation as lm-evaluation-harness logs one: its results and, for each suite, its samples.

Format: `EvalResults` and `SampleResult` of lm-eval 0.4.13. Items without a score, which that format does not know, are
left out and counted: `n-samples` has all as `original` and the scored ones as `effective`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

from stokehold.core.records import Evaluation
from stokehold.evaluation.logs.items import Logged, standard_error

METRIC = "exact_match"
FILTER = "none"
SOURCE = "stokehold"
UNKNOWN = "N/A"
"""What lm-eval writes for a standard error that cannot be had."""


def lm_eval_files(evaluation: Evaluation, items: Mapping[str, Sequence[Logged]]) -> dict[str, bytes]:
    """Contents by relative path: `MODEL/results_STAMP.json` and `MODEL/samples_SUITE_STAMP.jsonl`."""
    folder, stamp = _folder(evaluation), evaluation.created[:19].replace(":", "-")
    samples = {suite: _samples(evaluation, _scored(found)) for suite, found in items.items()}
    results = _results(evaluation, items, samples)
    files = {f"{folder}/results_{stamp}.json": json.dumps(results, indent=2, ensure_ascii=False).encode()}
    for suite, lines in samples.items():
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        files[f"{folder}/samples_{suite}_{stamp}.jsonl"] = content.encode()
    return files


def _results(
    evaluation: Evaluation, items: Mapping[str, Sequence[Logged]], samples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    facts = {"model": SOURCE, "model_args": {"ref": evaluation.ref, "weights_hash": evaluation.weights_hash}}
    return {
        "results": {suite: _metrics(suite, _scored(found)) for suite, found in items.items()},
        "group_subtasks": {suite: [] for suite in items},
        "configs": {suite: _config(evaluation, suite) for suite in items},
        "versions": {suite: _version(evaluation, suite) for suite in items},
        "n-shot": dict.fromkeys(items, 0),
        "higher_is_better": {suite: {METRIC: True} for suite in items},
        "n-samples": {
            suite: {"original": len(found), "effective": len(_scored(found))} for suite, found in items.items()
        },
        "config": {**facts, "batch_size": None, "limit": None, "bootstrap_iters": 0, "gen_kwargs": _asked(evaluation)},
        "git_hash": None,
        "date": datetime.fromisoformat(evaluation.created).timestamp(),
        "task_hashes": {suite: _task_hash(lines) for suite, lines in samples.items()},
        "model_source": SOURCE,
        "model_name": evaluation.ref,
        "model_name_sanitized": _folder(evaluation),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": None,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": str(evaluation.seconds),
    }


def _metrics(suite: str, scored: Sequence[Logged]) -> dict[str, Any]:
    right = sum(item.score.exact for item in scored)
    error = standard_error(right, len(scored))
    return {
        "name": suite,
        "alias": suite,
        "sample_len": len(scored),
        f"{METRIC},{FILTER}": right / len(scored) if scored else None,
        f"{METRIC}_stderr,{FILTER}": UNKNOWN if error is None else error,
    }


def _config(evaluation: Evaluation, suite: str) -> dict[str, Any]:
    return {
        "task": suite,
        "output_type": "generate_until",
        "num_fewshot": 0,
        "repeats": 1,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": _asked(evaluation),
        "metadata": {"version": _version(evaluation, suite), **evaluation.conditions},
    }


def _samples(evaluation: Evaluation, scored: Sequence[Logged]) -> list[dict[str, Any]]:
    return [_sample(number, item, _asked(evaluation)) for number, item in enumerate(scored)]


def _sample(number: int, item: Logged, asked: Mapping[str, Any]) -> dict[str, Any]:
    turns = [{"role": turn.role, "content": turn.content} for turn in item.sample.messages]
    doc = {"id": item.sample.id, "messages": turns, "metadata": dict(item.sample.metadata)}
    prompt = json.dumps(item.prompt, ensure_ascii=False)
    return {
        "doc_id": number,
        "doc": doc,
        "target": item.sample.gold,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": dict(asked)}},
        "resps": [[item.text]],
        "filtered_resps": [item.text],
        "filter": FILTER,
        "metrics": [METRIC],
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(item.sample.gold),
        METRIC: float(item.score.exact),
    }


def _asked(evaluation: Evaluation) -> dict[str, Any]:
    """How answers were generated: greedily, up to so many tokens where that was written down."""
    limit = evaluation.conditions.get("max_new_tokens")
    return {"do_sample": False, "temperature": 0.0, "until": [], **({"max_gen_toks": int(limit)} if limit else {})}


def _scored(found: Sequence[Logged]) -> list[Logged]:
    return [item for item in found if item.score.value is not None]


def _version(evaluation: Evaluation, suite: str) -> str | None:
    """A suite's version is its content."""
    return evaluation.suite_hashes.get(suite, "")[:12] or None


def _task_hash(lines: Sequence[Mapping[str, Any]]) -> str:
    return _hash("".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines))


def _folder(evaluation: Evaluation) -> str:
    """A name for a folder, as lm-eval makes it of a model's; none that leads out of where it stands."""
    return re.sub(r'["<>:/|\\?*\[\]]+', "__", evaluation.ref).strip(".") or SOURCE


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()
