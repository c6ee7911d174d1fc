"""An evaluation as Inspect logs one: an `EvalLog` of version 2 for each suite, as JSON.

Items without a score stand in the log without one, with the reason in their metadata, and are counted as unscored.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from stokehold import __version__
from stokehold.core.identity import short_id
from stokehold.core.records import Evaluation
from stokehold.evaluation.logs.items import Logged, standard_error

VERSION = 2
SCORER = "exact"
STOPS = {"stop": "stop", "length": "max_tokens"}
"""Inspect's word for how an answer ended, by ours."""


def inspect_files(evaluation: Evaluation, items: Mapping[str, Sequence[Logged]]) -> dict[str, bytes]:
    """Contents by file name, `STAMP_SUITE_ID.json`."""
    stamp = evaluation.created[:19].replace(":", "-")
    return {
        f"{stamp}_{suite}_{evaluation.id}.json": json.dumps(_log(evaluation, suite, found), indent=1).encode()
        for suite, found in items.items()
    }


def _log(evaluation: Evaluation, suite: str, found: Sequence[Logged]) -> dict[str, Any]:
    ended = datetime.fromisoformat(evaluation.created)
    began = ended - timedelta(seconds=evaluation.seconds)
    return {
        "version": VERSION,
        "status": "success",
        "eval": _spec(evaluation, suite, found, began),
        "plan": {"name": "plan", "steps": [{"solver": "generate", "params": {}}], "config": _asked(evaluation)},
        "results": _results(found),
        "stats": {"started_at": began.isoformat(), "completed_at": ended.isoformat(), "model_usage": {}},
        "samples": [_sample(evaluation, item) for item in found],
    }


def _spec(evaluation: Evaluation, suite: str, found: Sequence[Logged], began: datetime) -> dict[str, Any]:
    return {
        "eval_id": evaluation.id,
        "run_id": evaluation.id,
        "created": began.isoformat(),
        "task": suite,
        "task_id": short_id(suite, evaluation.suite_hashes.get(suite, "")),
        "task_version": evaluation.suite_hashes.get(suite, "")[:12],
        "dataset": {
            "name": suite,
            "samples": len(found),
            "sample_ids": [item.sample.id for item in found],
            "shuffled": False,
        },
        "model": f"stokehold/{evaluation.ref}",
        "model_args": {"weights_hash": evaluation.weights_hash},
        "model_generate_config": _asked(evaluation),
        "config": {"epochs": 1},
        "packages": {"stokehold": __version__},
        "metadata": {"fingerprint": evaluation.fingerprint, **evaluation.conditions},
        "scorers": [{"name": SCORER, "metrics": [{"name": "inspect_ai/accuracy"}, {"name": "inspect_ai/stderr"}]}],
    }


def _results(found: Sequence[Logged]) -> dict[str, Any]:
    scored = [item for item in found if item.score.value is not None]
    right = sum(item.score.exact for item in scored)
    error = standard_error(right, len(scored))
    metrics = {"accuracy": right / len(scored) if scored else None, "stderr": error}
    return {
        "total_samples": len(found),
        "completed_samples": len(found),
        "scores": [
            {
                "name": SCORER,
                "scorer": SCORER,
                "scored_samples": len(scored),
                "unscored_samples": len(found) - len(scored),
                "metrics": {
                    name: {"name": name, "value": value} for name, value in metrics.items() if value is not None
                },
            }
        ],
    }


def _sample(evaluation: Evaluation, item: Logged) -> dict[str, Any]:
    done = item.answer.completion
    said = {"role": "assistant", "content": item.text, "source": "generate"}
    read = {"family": item.answer.family, "level": item.answer.level, "gold_nll": item.answer.gold_nll}
    stop = STOPS.get(done.finish_reason, "unknown") if done else "unknown"
    return {
        "id": item.sample.id,
        "epoch": 1,
        "input": item.prompt,
        "target": item.sample.gold,
        "messages": [*item.prompt, said],
        "output": {
            "model": f"stokehold/{evaluation.ref}",
            "choices": [{"message": said, "stop_reason": stop}],
        },
        "scores": _scores(item),
        "metadata": {**read, **({"unscored": item.score.reason} if item.score.value is None else {})},
    }


def _scores(item: Logged) -> dict[str, Any]:
    if item.score.value is None:
        return {}
    return {
        SCORER: {
            "value": float(item.score.exact),
            "answer": item.text,
            "explanation": item.score.reason,
            "metadata": {"score": item.score.value, **item.score.parts},
        }
    }


def _asked(evaluation: Evaluation) -> dict[str, Any]:
    limit = evaluation.conditions.get("max_new_tokens")
    return {"temperature": 0.0, **({"max_tokens": int(limit)} if limit else {})}
