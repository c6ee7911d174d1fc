"""TRL's SFTTrainer as its documentation packs: best fit decreasing, two rows of 1,024 tokens a batch.

`python trl_packed.py FOLDER` trains FOLDER/model on FOLDER/train.jsonl and prints one line.
"""

import os
import tempfile
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="datasets")

import torch
from datasets import load_dataset
from meter import Meter, parser_of
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--length", type=int, default=1024)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    meter = Meter(given.skip)

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            meter.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.end()

    class Counted(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            mask = inputs.get("attention_mask")
            padded = mask is not None and mask.dim() == 2
            meter.batch(int(mask.sum()) if padded else inputs["input_ids"].numel())
            return super().compute_loss(model, inputs, *more, **named)

    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(prefix="trl"),
        per_device_train_batch_size=2,
        max_steps=given.steps,
        max_length=given.length,
        packing=True,
        packing_strategy="bfd",
        assistant_only_loss=True,
        learning_rate=1e-3,
        warmup_steps=5,
        seed=1,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=10,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Counted(
        model=AutoModelForCausalLM.from_pretrained(given.folder / "model", dtype=getattr(torch, given.dtype)),
        args=arguments,
        train_dataset=load_dataset("json", data_files=str(given.folder / "train.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(given.folder / "model"),
        callbacks=[Steps()],
    )
    trainer.train()
    meter.emit(last_loss=next((log["loss"] for log in reversed(trainer.state.log_history) if "loss" in log), None))


if __name__ == "__main__":
    main()
