"""Greedy answers to held-out puzzles: `Engine.complete` beside `model.generate` of transformers.

`python benchmarks/generate.py [--model FOLDER] [--rounds N] [--threads N]` prints JSON.

Both answer the same prompts in batches of the same size, with weights of the same folder. The questions come without
their gold answers, so the engine measures no likelihoods: that is work that `generate` does not do. Without `--model`
the weights are random and answers run to their limit; a trained version shows how rows that end early are dealt with.
Rates count generated tokens through each answer's end of turn. `same_answers` is the share of prompts that both
answered with the same tokens; where it is low, the two did different work.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from timing import in_turn, machine, summary
from transformers import AutoModelForCausalLM, PreTrainedModel

from stokehold.core.records import Sample
from stokehold.data.tokenizer import ChatTokenizer, load_tokenizer
from stokehold.inference.decoding import left_pad
from stokehold.inference.engine import Engine
from stokehold.pipeline.tiny import make_tiny
from stokehold.tasks.registry import draw
from stokehold.training.model import load_model

Answers = list[tuple[int, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; default: the tiny one with random weights")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--level", type=int, default=1, help="SYLLO level")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's own choice")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.model or Path(scratch)
        if given.model is None:
            make_tiny(folder, seed=0)
        questions = asked(given.level, given.prompts)
        tokenizer = load_tokenizer(folder)
        engine = Engine(load_model(folder, "float32", "cpu"), tokenizer)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    prompts = [tokenizer.prompt_ids(question.messages) for question in questions]
    answers: dict[str, Answers] = {}

    def ours(_round: int) -> None:
        done = engine.complete(questions, given.new_tokens, given.batch)
        answers["engine"] = [completion.token_ids for completion in done]

    def theirs(_round: int) -> None:
        answers["generate"] = generate(model, tokenizer, prompts, given.new_tokens, given.batch)

    candidates = {"engine": ours, "generate": theirs}
    for run in candidates.values():
        run(0)
    seconds = in_turn(candidates, given.rounds)
    counts = {name: [sum(map(len, found))] * given.rounds for name, found in answers.items()}
    same = sum(a == b for a, b in zip(answers["engine"], answers["generate"], strict=True)) / len(questions)
    report = {
        "machine": machine(),
        "rounds": given.rounds,
        "model": str(given.model) if given.model else "tiny, random weights",
        "prompts": len(prompts),
        "batch": given.batch,
        "new_tokens_at_most": given.new_tokens,
        "same_answers": same,
        **summary(seconds, counts, "engine"),
    }
    json.dump(report, sys.stdout, indent=2)
    print()


def asked(level: int, count: int) -> list[Sample]:
    """Held-out puzzles without their answers."""
    drawn = draw("syllo", level, count, 2, "holdout")
    return [replace(sample, messages=sample.question) for sample in drawn]


def generate(
    model: PreTrainedModel, tokenizer: ChatTokenizer, prompts: Sequence[list[int]], new_tokens: int, batch: int
) -> Answers:
    """What `generate` answers, cut after each answer's end of turn."""
    found: Answers = []
    for start in range(0, len(prompts), batch):
        ids, mask = left_pad(prompts[start : start + batch], tokenizer.pad_id, model.device)
        rows = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=sorted(tokenizer.stop_ids),
            pad_token_id=tokenizer.pad_id,
        )
        found += [_ended(row, tokenizer.stop_ids) for row in rows[:, ids.shape[1] :].tolist()]
    return found


def _ended(ids: list[int], stops: frozenset[int]) -> tuple[int, ...]:
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids) - 1)
    return tuple(ids[: end + 1])


if __name__ == "__main__":
    main()
