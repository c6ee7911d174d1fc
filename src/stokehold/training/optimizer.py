"""The optimiser and its learning rate: a function of configuration and step, never of how a run was started.

Every kind keeps its state by parameter name, so that a checkpoint does not depend on the order of parameters.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stokehold.core.config import TrainingConfig
from stokehold.core.errors import IntegrityError
from stokehold.training.cuda import QUANTISED_OPTIMIZERS, bitsandbytes

TORCH_KEYS = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), torch.optim.Muon: ("momentum_buffer",)}
"""What torch's own optimisers remember of a parameter."""

QUANTISED_KEYS = ("step", "state1", "state2")
"""What bitsandbytes' optimisers remember of every parameter; of larger ones also the scales of their blocks."""

MASTER = "master"
"""Key of a half-precision weight's own value in float32."""

CONSTANT = ("qmap1", "qmap2")
"""Tables of 8-bit codes: the same for every parameter, made anew instead of stored."""


@dataclass(frozen=True)
class Part:
    """An optimiser of some of the parameters; its rate is the schedule's times `share`."""

    optimizer: torch.optim.Optimizer
    share: float = 1.0


class Optimizer:
    """All that updates one model: each trainable parameter belongs to one of `parts`.

    A parameter in `masters` (bfloat16) is updated in float32 beside the model and rounded into it: bfloat16 has 8 bits,
    and most updates of fine-tuning are smaller than the last of them.
    """

    def __init__(
        self,
        names: Mapping[torch.Tensor, str],
        parts: Sequence[Part],
        masters: Mapping[torch.nn.Parameter, torch.nn.Parameter] | None = None,
    ) -> None:
        """`names` are those of what the parts hold: of a parameter, or of its master."""
        self._names, self.parts, self._masters = names, parts, masters or {}

    def step(self) -> None:
        """Updates every parameter that has a gradient."""
        for parameter, master in self._masters.items():
            master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
        for part in self.parts:
            part.optimizer.step()
        with torch.no_grad():
            for parameter, master in self._masters.items():
                parameter.copy_(master)
                master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients."""
        for part in self.parts:
            part.optimizer.zero_grad(set_to_none=set_to_none)
        for parameter in self._masters:
            parameter.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """What it remembers, as `parameter.key`; a parameter that never had a gradient has nothing."""
        found = {f"{self._names[master]}.{MASTER}": master.detach() for master in self._masters.values()}
        for part in self.parts:
            for parameter, state in part.optimizer.state.items():
                for key, value in state.items():
                    if key not in CONSTANT:
                        tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
                        found[f"{self._names[parameter]}.{key}"] = tensor
        return found

    def load_state(self, tensors: Mapping[str, torch.Tensor], where: str) -> None:
        """Takes up what `state` gave, on the parameters' device; IntegrityError where a parameter has half of it."""
        with torch.no_grad():
            for master in self._masters.values():
                if (saved := tensors.get(f"{self._names[master]}.{MASTER}")) is not None:
                    master.copy_(saved)
        for part in self.parts:
            for number, group in enumerate(part.optimizer.param_groups):
                for place, parameter in enumerate(group["params"]):
                    self._load(part.optimizer, parameter, (group, parameter, number, place), tensors, where)

    def _load(
        self,
        optimizer: Any,
        parameter: torch.nn.Parameter,
        at: tuple[dict[str, Any], torch.nn.Parameter, int, int],
        tensors: Mapping[str, torch.Tensor],
        where: str,
    ) -> None:
        name = self._names[parameter]
        keys: Sequence[str] = TORCH_KEYS.get(type(optimizer), QUANTISED_KEYS)
        if not any(f"{name}.{key}" in tensors for key in keys):
            return  # it never had a gradient
        if type(optimizer) not in TORCH_KEYS:  # where its buffers lie, and of which type, bitsandbytes alone knows
            optimizer.init_state(*at)
            keys = [key for key in optimizer.state[parameter] if key not in CONSTANT]
        if missing := [key for key in keys if f"{name}.{key}" not in tensors]:
            raise IntegrityError(f"optimiser state lacks {missing}", f"{where}: {name}", "use an older one")
        state = optimizer.state[parameter]
        for key in keys:
            saved = tensors[f"{name}.{key}"]
            if key not in state:
                state[key] = saved
            elif isinstance(state[key], torch.Tensor):
                state[key].copy_(saved)
            else:
                state[key] = int(saved)


def build_optimizer(model: torch.nn.Module, config: TrainingConfig) -> Optimizer:
    """The configured optimiser over the trainable parameters in the model's own order; decay on matrices only.

    Raises ConfigError for a kind that this machine does not have.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    masters = _masters(trainable.values()) if config.optimizer not in QUANTISED_OPTIMIZERS else {}
    names: dict[torch.Tensor, str] = {masters.get(p, p): name for name, p in trainable.items()}
    parameters = [masters.get(p, p) for p in trainable.values()]
    if config.optimizer == "muon":
        return Optimizer(names, _muon(model, masters, parameters, config), masters)
    kind, options = torch.optim.AdamW, {"fused": True}
    if config.optimizer in QUANTISED_OPTIMIZERS:
        library = bitsandbytes(f'training.optimizer = "{config.optimizer}"', parameters[0].device)
        kind = library.optim.AdamW8bit if config.optimizer == "adamw_8bit" else library.optim.PagedAdamW
        options = {}
    return Optimizer(names, [Part(_adamw(kind, parameters, config, **options))], masters)


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


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Gives every parameter its rate for the next step; `rate` is the schedule's."""
    for part in optimizer.parts:
        for group in part.optimizer.param_groups:
            group["lr"] = rate * part.share


def _adamw(kind: Any, parameters: Sequence[torch.nn.Parameter], config: TrainingConfig, **options: Any) -> Any:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return kind(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        **options,
    )


def _masters(parameters: Iterable[torch.nn.Parameter]) -> dict[torch.nn.Parameter, torch.nn.Parameter]:
    """A copy in float32 of each parameter that has fewer bits."""
    narrow = [p for p in parameters if p.dtype in (torch.bfloat16, torch.float16)]
    return {p: torch.nn.Parameter(p.detach().to(torch.float32)) for p in narrow}


def _muon(
    model: torch.nn.Module,
    masters: Mapping[torch.nn.Parameter, torch.nn.Parameter],
    parameters: Sequence[torch.nn.Parameter],
    config: TrainingConfig,
) -> list[Part]:
    """Muon orthogonalises updates, which suits matrices between hidden states: not embeddings, and not the head."""
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    ends = (*tables, *([head] if head is not None else ()))
    apart = {id(masters.get(p, p)) for module in ends for p in module.parameters()}
    hidden = [p for p in parameters if p.ndim == 2 and id(p) not in apart]
    others = [p for p in parameters if p.ndim != 2 or id(p) in apart]
    parts = []
    if hidden:
        muon = torch.optim.Muon(hidden, lr=config.muon_learning_rate, weight_decay=config.weight_decay)
        parts.append(Part(muon, config.muon_learning_rate / config.learning_rate))
    return [*parts, Part(_adamw(torch.optim.AdamW, others, config, fused=True))] if others else parts
