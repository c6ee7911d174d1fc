"""transformers' Trainer with one conversation a batch, labels on the assistant's answer.

`python hf_trainer.py FOLDER` trains FOLDER/model on FOLDER/train.jsonl and prints one line. A step has about an eighth
of the tokens that the packed candidates' steps have, so `--steps` is multiplied by eight.
"""

import os
import tempfile
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="datasets")

import torch
from datasets import load_dataset
from meter import Meter, parser_of
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

STEPS_EACH = 8
IGNORED = -100


def main() -> None:
    parser = parser_of(__doc__)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    meter = Meter(given.skip * STEPS_EACH)
    tokenizer = AutoTokenizer.from_pretrained(given.folder / "model")

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            meter.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.end()

    class Counted(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            meter.batch(inputs["input_ids"].numel())
            return super().compute_loss(model, inputs, *more, **named)

    def tokenised(row: dict[str, Any]) -> dict[str, Any]:
        found = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        labels = [
            token if trained else IGNORED
            for token, trained in zip(found["input_ids"], found["assistant_masks"], strict=True)
        ]
        return {"input_ids": found["input_ids"], "labels": labels}

    def collated(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([rows[0][name]]) for name in ("input_ids", "labels")}

    rows = load_dataset("json", data_files=str(given.folder / "train.jsonl"), split="train")
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="hf"),
        per_device_train_batch_size=1,
        max_steps=given.steps * STEPS_EACH,
        learning_rate=1e-3,
        warmup_steps=5,
        seed=1,
        use_cpu=True,
        logging_steps=10,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Counted(
        model=AutoModelForCausalLM.from_pretrained(given.folder / "model", dtype=getattr(torch, given.dtype)),
        args=arguments,
        train_dataset=rows.map(tokenised, remove_columns=rows.column_names),
        data_collator=collated,
        callbacks=[Steps()],
    )
    trainer.train()
    meter.emit(last_loss=next((log["loss"] for log in reversed(trainer.state.log_history) if "loss" in log), None))


if __name__ == "__main__":
    main()
