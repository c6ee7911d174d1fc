"""Does llama.cpp answer as the folder does? Logits of one text and a greedy continuation, ours beside its.

    python benchmarks/gguf_llama.py FOLDER [--text TEXT] [--tokens 20]

FOLDER is what `stoke versions export … --gguf` wrote. Needs llama-cpp-python, which is no dependency of Stokehold.
Writes one JSON line for each GGUF file: the largest difference of a logit, the share of positions with the same best
token, whether both tokenizers gave the same ids, and both continuations.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from llama_cpp import Llama
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

TEXT = "say the colour of apple"


def compare(folder: Path, file: Path, text: str, tokens: int) -> dict[str, object]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = model(torch.tensor([ids])).logits[0].numpy()
        answer = model.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)[0, len(ids) :].tolist()
    other = Llama(str(file), n_ctx=len(ids) + tokens, logits_all=True, verbose=False)
    same_ids = other.tokenize(text.encode(), add_bos=False) == ids
    other.eval(ids)
    theirs = np.array(other.scores[: len(ids)])
    other.reset()
    said = [token for token, _ in zip(other.generate(ids, temp=0.0), range(tokens), strict=False)]
    return {
        "file": file.name,
        "worst_logit": float(np.abs(ours - theirs).max()),
        "largest_logit": float(np.abs(ours).max()),
        "same_best": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        "same_ids": same_ids,
        "ours": tokenizer.decode(answer, skip_special_tokens=False),
        "theirs": tokenizer.decode(said[: len(answer)], skip_special_tokens=False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--tokens", type=int, default=20)
    given = parser.parse_args()
    for file in sorted(given.folder.glob("*.gguf")):
        print(json.dumps(compare(given.folder, file, given.text, given.tokens), ensure_ascii=False))


if __name__ == "__main__":
    main()
