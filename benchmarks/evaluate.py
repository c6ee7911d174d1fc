"""One pass of evaluation beside `model.generate` of transformers: seconds for the same items, answered greedily.

`python benchmarks/evaluate.py [--keep FOLDER] [--sets NAME…] [--rounds N] [--threads N]` prints JSON.

Sets: `syllo` (puzzles of level 1), `arithmetic` (level 3: answers of a few tokens), `recital` (numbered lines of
syllables, answers of about 300 tokens). Each is answered by two models of the same tiny shape: one that was trained on
these very items until it answers the share `--exact` of them as its gold answer is, and one with random weights, which
answers none so. Training takes minutes; `--keep` keeps the model folders, FOLDER/SET, and takes them up again.

Both sides begin with conversations and end with text, in batches of `--batch`; an answer may be as long as the longest
gold answer of its set and 16 tokens more, which is the hardest limit for the pass over gold answers. `one by one` is
`generate` with batches of one, timed on the first `--single` items and counted per item. The engine reports the
likelihoods of all gold answers besides, which `generate` does not. Every round runs each candidate once, in turn;
ratios are taken within a round, and the median and quartiles of those are reported: of seconds on the clock, and of
seconds that the process spent on the processor, which a machine that others use disturbs less.

`identical` counts items whose tokens are the same on both sides, `ties` those that the engine lists as ties, and
`differ_without_tie` must be 0.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from generate import generate
from timing import in_turn, machine
from transformers import AutoModelForCausalLM, PreTrainedModel

from stokehold.core.records import Completion, Message, Sample
from stokehold.data.tokenizer import ChatTokenizer, load_tokenizer
from stokehold.inference.decoding import left_pad
from stokehold.inference.engine import GOLD_SLACK, Engine
from stokehold.pipeline.tiny import make_tiny
from stokehold.tasks.registry import draw
from stokehold.training.model import load_model

TRAINED_TOGETHER = 8
LEARNING_RATE = 3e-3
WARMUP_STEPS = 20
LOOK_EVERY_STEPS = 20

SYLLABLES = [consonant + vowel for consonant in "bcdfghklmnprstvw" for vowel in "aeiou"]
RECITED_LINES = 75

Answers = list[tuple[int, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=sorted(SETS))
    parser.add_argument("--keep", type=Path, help="where trained models are kept; default: trained anew, thrown away")
    parser.add_argument("--exact", type=float, default=0.95, help="share of exact answers that ends the training")
    parser.add_argument("--begin", type=Path, help="weights that training begins with; default: random ones")
    parser.add_argument("--train-seconds", type=float, default=900, help="per set; ends the training at the latest")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--single", type=int, default=0, help="items answered one by one too; 0 leaves that out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's own choice")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        root = given.keep or Path(scratch)
        untrained = root / "random"
        if not untrained.is_dir():
            make_tiny(untrained, seed=0)
        found: dict[str, Any] = {}
        for name in given.sets:
            samples = SETS[name](given.items)
            folder = root / name
            if not folder.is_dir():
                overfit(given.begin or untrained, folder, samples, given.exact, given.train_seconds)
            if not given.train_only:
                models = {"trained": folder, "random": untrained}
                found[name] = {kind: compared(model, samples, given) for kind, model in models.items()}
    json.dump({"machine": machine(), "rounds": given.rounds, "batch": given.batch, "sets": found}, sys.stdout, indent=2)
    print()


def recital(count: int) -> list[Sample]:
    """Numbered lines of syllables from a given one on, in the order of the alphabet and round again."""
    made = []
    for first in range(count):
        lines = [f"{n + 1} {SYLLABLES[(first + n) % len(SYLLABLES)]}" for n in range(RECITED_LINES)]
        asked = f"Recite from {SYLLABLES[first % len(SYLLABLES)]} on."
        made.append(Sample(f"recital{first}", (Message("user", asked), Message("assistant", "\n".join(lines)))))
    return made


def drawn(family: str, level: int) -> Callable[[int], list[Sample]]:
    return lambda count: list(draw(family, level, count, 2, "holdout"))


SETS: dict[str, Callable[[int], list[Sample]]] = {
    "syllo": drawn("syllo", 1),
    "arithmetic": drawn("arithmetic", 3),
    "recital": recital,
}


def overfit(base: Path, folder: Path, samples: Sequence[Sample], exact: float, seconds: float) -> None:
    """Trains a copy of `base` on the answers until it gives the share `exact` of them, and writes it to `folder`."""
    tokenizer = load_tokenizer(base)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa")
    engine = Engine(model, tokenizer)
    pairs = [tokenizer.answer_ids(sample.messages) for sample in samples]
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    chance, started, step, share = random.Random(0), time.monotonic(), 0, 0.0
    while share < exact and time.monotonic() - started < seconds:
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(step / WARMUP_STEPS, (WARMUP_STEPS / step) ** 0.5)
        loss = answer_loss(model, chance.sample(pairs, min(TRAINED_TOGETHER, len(pairs))), tokenizer.pad_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % LOOK_EVERY_STEPS == 0:
            share = exact_share(engine.complete(samples, 1, len(samples)))
            spent = time.monotonic() - started
            print(
                f"{folder.name}: step {step}, loss {loss.item():.4f}, exact {share:.3f}, {spent:.0f} s", file=sys.stderr
            )
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((base / name).read_bytes())


def answer_loss(model: PreTrainedModel, pairs: Sequence[tuple[list[int], list[int]]], pad_id: int) -> torch.Tensor:
    """Mean negative log-likelihood of the answers' tokens."""
    widest = max(len(tail) for _, tail in pairs)
    ids, mask = left_pad([[*head, *tail] for head, tail in pairs], pad_id, model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=widest + 1).logits[:, :-1]
    _, trained = left_pad([tail for _, tail in pairs], pad_id, model.device)
    targets = ids[:, -widest:].masked_fill(trained == 0, -100)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def exact_share(completions: Sequence[Completion]) -> float:
    return sum(done.gold_matched == done.gold_tokens for done in completions) / len(completions)


def compared(folder: Path, samples: Sequence[Sample], given: argparse.Namespace) -> dict[str, Any]:
    """The figures of one model on one set."""
    tokenizer = load_tokenizer(folder)
    engine = Engine(load_model(folder, "float32", "cpu"), tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    longest = max(len(tokenizer.answer_ids(sample.messages)[1]) for sample in samples)
    limit = longest + GOLD_SLACK
    ours: list[Completion] = []
    theirs: Answers = []

    def run_engine(_round: int) -> None:
        ours[:] = engine.complete(samples, limit, given.batch)

    def run_generate(_round: int) -> None:
        theirs[:] = answered(model, tokenizer, samples, limit, given.batch)

    def run_single(_round: int) -> None:
        answered(model, tokenizer, samples[: given.single], limit, 1)

    candidates = {"engine": run_engine, "generate": run_generate}
    if given.single:
        candidates["one by one"] = run_single
    run_engine(0)
    run_generate(0)
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    timed = {name: on_the_processor(run, spent[name]) for name, run in candidates.items()}
    seconds = in_turn(timed, given.rounds)
    pairs = [(mine, other) for mine, other in zip(ours, theirs, strict=True)]
    different = [mine for mine, other in pairs if mine.token_ids != other]
    return {
        "items": len(samples),
        "exact": exact_share(ours),
        "answer_tokens": sum(len(done.token_ids) for done in ours) / len(ours),
        "gold_tokens_at_most": longest,
        "new_tokens_at_most": limit,
        "identical": len(samples) - len(different),
        "ties": sum(done.tie for done in ours),
        "differ_without_tie": sum(not done.tie for done in different),
        "seconds": figures(seconds, len(samples), given.single),
        "processor_seconds": figures(spent, len(samples), given.single),
    }


def on_the_processor(run: Callable[[int], None], spent: list[float]) -> Callable[[int], None]:
    """`run`, which also notes the processor seconds of this process."""

    def noted(number: int) -> None:
        started = time.process_time()
        run(number)
        spent.append(time.process_time() - started)

    return noted


def figures(seconds: Mapping[str, Sequence[float]], items: int, single: int) -> dict[str, Any]:
    """Medians per item, and how many times as fast as each other candidate the engine was."""
    counts = {"one by one": single}
    per_item = {name: [s / counts.get(name, items) for s in each] for name, each in seconds.items()}
    others = {name: ratios(each, per_item["engine"]) for name, each in per_item.items() if name != "engine"}
    medians = {name: statistics.median(each) for name, each in per_item.items()}
    return {"per_item": medians, "engine_is_times_as_fast": others}


def answered(
    model: PreTrainedModel, tokenizer: ChatTokenizer, samples: Sequence[Sample], limit: int, batch: int
) -> Answers:
    """What `generate` answers, from conversations to text."""
    found = generate(model, tokenizer, [tokenizer.prompt_ids(sample.question) for sample in samples], limit, batch)
    for ids in found:
        tokenizer.answer_text(ids)
    return found


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    each = [other / mine for other, mine in zip(theirs, ours, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
    return {"median": middle, "quartiles": [low, high]}


if __name__ == "__main__":
    main()
