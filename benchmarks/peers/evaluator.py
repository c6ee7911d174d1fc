"""One evaluator of the old kind, beside `benchmarks/evaluators.py`: a process that loads the model and answers every
item itself with transformers' `generate`, for one reading. It uses nothing of this project's.

`python evaluator.py MODEL PROMPTS --new-tokens N --batch N` reads `{"prompt": [ids], "gold": [ids]}` lines, and prints
JSON: the share of answers equal to their gold.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    items = [json.loads(line) for line in given.prompts.read_text().splitlines()]
    items.sort(key=lambda item: len(item["prompt"]))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    right = 0
    for start in range(0, len(items), given.batch):
        part = items[start : start + given.batch]
        width = max(len(item["prompt"]) for item in part)
        ids = torch.tensor([[pad] * (width - len(item["prompt"])) + item["prompt"] for item in part])
        mask = torch.tensor([[0] * (width - len(item["prompt"])) + [1] * len(item["prompt"]) for item in part])
        with torch.inference_mode():
            whole = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=given.new_tokens,
                do_sample=False,
                pad_token_id=pad,
            )
        answers = whole[:, width:].tolist()
        right += sum(answer[: len(item["gold"])] == item["gold"] for answer, item in zip(answers, part, strict=True))
    print(json.dumps({"exact": right / len(items), "items": len(items)}))


if __name__ == "__main__":
    main()
