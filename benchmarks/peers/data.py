"""What every candidate reads: chat rows, a BPE tokenizer whose template marks the assistant's words, a random Qwen3.

`python benchmarks/peers/data.py FOLDER [--rows N] [--seed N]` writes FOLDER/train.jsonl and FOLDER/model; equal
arguments write equal rows and weights.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

VOCABULARY = 4096
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""5.77 M parameters."""

TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}"
    "{%- else %}{{- message['content'] + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
SYSTEM = {"role": "system", "content": "Work carefully. Reply with JSON and nothing else."}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    rows = list(conversations(given.rows, given.seed))
    lines = "".join(json.dumps({"messages": row}) + "\n" for row in rows)
    (given.folder / "train.jsonl").write_text(lines)
    write_model(given.folder / "model", [message["content"] for row in rows for message in row], given.seed)


def conversations(count: int, seed: int) -> Iterator[list[dict[str, str]]]:
    """Sums to work out, or words to put together from syllables; about 250 tokens each, half of them answers."""
    draw = random.Random(seed)
    for _ in range(count):
        question, answer = (sums if draw.random() < 0.5 else words)(draw)
        system = [SYSTEM] if draw.random() < 0.3 else []
        yield [*system, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def sums(draw: random.Random) -> tuple[str, str]:
    lines, values = [], []
    for number in range(1, draw.randint(2, 12) + 1):
        a, b, sign = draw.randint(2, 999), draw.randint(2, 999), draw.choice("+-*")
        lines.append(f"{number}. {a} {sign} {b} = ?")
        values.append({"n": number, "value": {"+": a + b, "-": a - b, "*": a * b}[sign]})
    return "Work out each line and return JSON.\n" + "\n".join(lines), json.dumps(
        {"answers": values, "count": len(values)}
    )


def words(draw: random.Random) -> tuple[str, str]:
    spelled = [[syllable(draw) for _ in range(draw.randint(2, 4))] for _ in range(draw.randint(2, 7))]
    bank = [part for word in spelled for part in word] + [syllable(draw) for _ in range(draw.randint(0, 3))]
    draw.shuffle(bank)
    clues = [
        f"{number}. {' '.join('___' for _ in word)} - starts with '{word[0]}', {len(''.join(word))} letters"
        for number, word in enumerate(spelled, 1)
    ]
    solved = [{"ans_num": n, "syllables": word, "answer": "".join(word).upper()} for n, word in enumerate(spelled, 1)]
    asked = "Find the words in the bank of syllables. Use each syllable once.\n" + "\n".join(clues)
    return f"{asked}\n\nBank: {', '.join(bank)}", json.dumps({"solutions": solved})


def syllable(draw: random.Random) -> str:
    return draw.choice("bcdfghjklmnprstvwz") + draw.choice("aeiou") + (draw.choice("nrslmt") * (draw.random() < 0.4))


def write_model(folder: Path, texts: list[str], seed: int) -> None:
    """Tokenizer and random weights, in a folder that transformers loads as it is."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    draw = random.Random(seed + 1)
    # The rows alone have too few different words for this many merges.
    odd = [" ".join(syllable(draw) + syllable(draw) for _ in range(40)) for _ in range(2000)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts + odd, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>", "<|endoftext|>"],
        model_max_length=4096,
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    ids = {"eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id, "bos_token_id": None}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, **SHAPE, **ids)).save_pretrained(folder)


if __name__ == "__main__":
    main()
