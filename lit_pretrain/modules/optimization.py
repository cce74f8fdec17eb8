"""AdamW with BERT's parameter groups, and learning-rate schedules in steps or as shares of the training.

AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with epsilon 1e-6, decay 0.01 on matrices only and linear warm-up
then linear decay is BERT's recipe; cosine and constant-then-decay (Zhai et al. 2022, arXiv:2106.04560) are the usual
alternatives.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_pretrain.errors import UserError


@dataclass(frozen=True)
class AdamWConfig:
    """Settings of the optimiser.

    Args:
        learning_rate: Highest learning rate of the schedule.
        weight_decay: Decay of matrices; layer norms, biases and other 1-d parameters never decay.
        beta1: Decay rate of the mean of gradients.
        beta2: Decay rate of the mean of squared gradients.
        epsilon: Added to the root of the mean of squares.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        if self.learning_rate <= 0 or not math.isfinite(self.learning_rate):
            raise UserError(f"optimizer.learning_rate is {self.learning_rate}: give a number above 0.")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the training, as a factor of its highest value.

    Args:
        shape: After the warm-up `linear` or `cosine` decay to `final`, or `constant_then_decay`: constant, then linear.
        warm_up: Steps (an integer above 1) or share of all steps (below 1) to rise linearly from 0.
        decay: Steps or share of the final linear decay of `constant_then_decay`.
        final: Factor at the end.
    """

    shape: Literal["linear", "cosine", "constant_then_decay"] = "linear"
    warm_up: float = 0.1
    decay: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        """Refuse negative lengths."""
        for name in ("warm_up", "decay", "final"):
            if getattr(self, name) < 0:
                raise UserError(f"schedule.{name} is {getattr(self, name)}: give 0 or more.")

    def factor(self, step: int, total_steps: int) -> float:
        """Factor of the learning rate for the step that follows `step` finished ones.

        Args:
            step: Optimiser steps done.
            total_steps: Optimiser steps of the whole training.
        """
        warm_up = in_steps(self.warm_up, total_steps)
        if step < warm_up:
            # The first step already moves: 1 / warm_up rather than 0.
            return (step + 1) / warm_up
        decay = total_steps - warm_up
        if self.shape == "constant_then_decay":
            decay = min(in_steps(self.decay, total_steps), decay)
        progress = min(1.0, max(0.0, (step - (total_steps - decay)) / max(1, decay)))
        left = 0.5 * (1 + math.cos(math.pi * progress)) if self.shape == "cosine" else 1.0 - progress
        return self.final + (1.0 - self.final) * left


def in_steps(length: float, total_steps: int) -> int:
    """A length given in steps (1 and above) or as a share of all steps (below 1), in steps."""
    return round(length * total_steps) if length < 1 else int(length)


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, with and without decay, each trainable parameter once.

    Args:
        modules: Encoder and objectives; a module's `no_weight_decay()` names parameters of its own that must not decay.
        weight_decay: Decay of the first group.
    """
    decayed, undecayed, seen = [], [], set()
    for module in modules:
        exempt = module.no_weight_decay() if hasattr(module, "no_weight_decay") else set()
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            (undecayed if parameter.ndim <= 1 or name in exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(modules: Iterable[nn.Module], config: AdamWConfig, fused: bool = True) -> AdamW:
    """AdamW over the modules' parameters.

    Args:
        modules: As in `parameter_groups`.
        config: Its settings.
        fused: One kernel for all parameters; not with fp16's gradient scaler, which Lightning lets nobody clip then.
    """
    return AdamW(
        parameter_groups(modules, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=fused,
    )


def layers_of(encoder: nn.Module) -> dict[str, int]:
    """The layer of every parameter: 0 the embeddings, 1 to depth the blocks, depth + 1 what follows the last block.

    Args:
        encoder: With timm's `group_matcher`.
    """
    from timm.models import group_parameters

    return group_parameters(encoder, encoder.group_matcher(), reverse=True)


def make_layerwise_optimizer(
    encoder: nn.Module,
    heads: Iterable[nn.Module],
    config: AdamWConfig,
    layer_decay: float = 1.0,
    head_factor: float = 1.0,
    fused: bool = True,
    unfreeze_at: dict[int, int] | None = None,
) -> AdamW:
    """AdamW with a learning rate for each layer: `layer_decay` of that of the layer after it.

    Args:
        encoder: With timm's `group_matcher` and `no_weight_decay`.
        heads: New heads, with the highest rate times `head_factor`.
        config: The optimiser's settings; its learning rate is that of what follows the last block.
        layer_decay: Factor from a block to the one before it, embeddings being one more (Clark et al. 2020).
        head_factor: Factor of the heads' rate.
        fused: As in `make_optimizer`.
        unfreeze_at: Layer, by `layers_of`'s numbers -> step before which its learning rate is 0; null for none.
    """
    layers, exempt = layers_of(encoder), encoder.no_weight_decay()
    last = max(layers.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in encoder.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, decayed = layers[name], parameter.ndim > 1 and name not in exempt
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "weight_decay": config.weight_decay if decayed else 0.0,
                "lr": config.learning_rate * layer_decay ** (last - layer),
                "unfreeze_at": (unfreeze_at or {}).get(layer, 0),
            },
        )
        group["params"].append(parameter)
    rate = config.learning_rate * head_factor
    head_groups = [group | {"lr": rate, "unfreeze_at": 0} for group in parameter_groups(heads, config.weight_decay)]
    return AdamW(
        [*head_groups, *groups.values()],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=fused,
    )


def make_scheduler(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> LambdaLR:
    """The schedule over so many optimiser steps, to be stepped after each; groups wait for their `unfreeze_at`."""

    def factor_of(group: dict[str, Any]) -> Callable[[int], float]:
        first = group.get("unfreeze_at", 0)
        return lambda step: config.factor(step, total_steps) if step >= first else 0.0

    return LambdaLR(optimizer, [factor_of(group) for group in optimizer.param_groups])
