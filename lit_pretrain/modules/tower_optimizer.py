"""AdamW over towers that learn at rates of their own, or wait for a while."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from lit_pretrain.modules.optimization import AdamWConfig


@dataclass(frozen=True)
class TrainedPart:
    """Modules that are trained at a rate of their own.

    Attributes:
        module: Whose parameters.
        rate_factor: Of the learning rate.
        unlock_at: Optimiser step before which the rate is 0.
    """

    module: nn.Module
    rate_factor: float = 1.0
    unlock_at: int = 0


def make_tower_optimizer(parts: Iterable[TrainedPart], config: AdamWConfig, fused: bool) -> torch.optim.AdamW:
    """AdamW over parts of a model, each parameter once, at the first part that has it.

    Matrices decay, unless their module's `no_weight_decay` names them. A part that is still locked waits by a rate of 0
    rather than without gradients, so that processes agree on which gradients there are.
    """
    groups, seen = [], set()
    for part in parts:
        exempt = part.module.no_weight_decay() if hasattr(part.module, "no_weight_decay") else set()
        found: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in part.module.named_parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found[parameter.ndim > 1 and name not in exempt].append(parameter)
        for decayed, parameters in found.items():
            if parameters:
                groups.append(
                    {
                        "params": parameters,
                        "weight_decay": config.weight_decay if decayed else 0.0,
                        "lr": config.learning_rate * part.rate_factor,
                        "unfreeze_at": part.unlock_at,
                    }
                )
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=fused)
