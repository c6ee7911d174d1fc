"""AdamW and its learning rate. The rate is a function of configuration and step, never of how a run was started."""

import math

import torch

from stokehold.core.config import TrainingConfig


def build_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over all parameters in the model's own order; decay on matrices only."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for _, p in named if p.ndim >= 2]
    vectors = [p for _, p in named if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Rate of the step that makes the counter `step` + 1.

    Linear warm-up, then the schedule; `cosine` and `wsd` reach `floor_share` of the peak at `total_steps` and stay.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant" or config.total_steps == 0:
        return config.learning_rate
    start = config.warmup_steps
    if config.schedule == "wsd":
        start = max(start, round(config.total_steps * (1 - config.decay_share)))
    progress = min(1.0, max(0.0, (step - start) / max(1, config.total_steps - start)))
    shape = 1 - progress if config.schedule == "wsd" else (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * (config.floor_share + (1 - config.floor_share) * shape)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every parameter group the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
