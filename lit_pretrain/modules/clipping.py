"""Gradient clipping where Lightning's own refuses: a fused optimiser in bf16, and the norm under FSDP.

Lightning 2.6 takes every fused optimiser under autocast for one that unscales gradients within its step. That is so in
fp16 with a scaler; bf16 has no scaler and clips as fp32 does. Under FSDP a gradient's norm is spread over the ranks,
and only the wrapped module can sum it up.

What waits for its turn at a learning rate of 0 has gradients too, so that processes agree on which there are. They say
nothing of what moves, and are clipped by themselves: they do reach the optimiser's running means.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from lightning import Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer


def clip_gradients(trainer: Trainer, optimizer: Optimizer, value: float, algorithm: str) -> None:
    """Clip the gradients of an optimiser's parameters in place.

    Args:
        trainer: Its strategy and precision decide how.
        optimizer: The optimiser.
        value: Largest norm, or largest absolute value; 0 leaves the gradients alone.
        algorithm: `norm` or `value`.
    """
    if value <= 0:
        return
    kind = GradClipAlgorithmType(algorithm)
    parameters_by_kind: dict[bool, list[Parameter]] = {True: [], False: []}
    for group in optimizer.param_groups:
        parameters_by_kind[group["lr"] > 0.0] += group["params"]
    moving, waiting = parameters_by_kind[True], parameters_by_kind[False]
    for others in (waiting, moving) if moving and waiting and kind == GradClipAlgorithmType.NORM else ((),):
        with without_gradients(others):
            clip_all(trainer, optimizer, value, kind)


def clip_all(trainer: Trainer, optimizer: Optimizer, value: float, kind: GradClipAlgorithmType) -> None:
    """As `clip_gradients`, whatever has a gradient."""
    plugin = trainer.precision_plugin
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in parameters):
        clip_rows(parameters, value, kind)
        return
    if isinstance(trainer.strategy.model, FullyShardedDataParallel) and kind == GradClipAlgorithmType.NORM:
        trainer.strategy.model.clip_grad_norm_(value)
    elif getattr(plugin, "scaler", None) is None:
        Precision.clip_gradients(plugin, optimizer, value, kind)
    else:
        plugin.clip_gradients(optimizer, value, kind)


def clip_rows(parameters: Iterable[Parameter], value: float, kind: GradClipAlgorithmType) -> None:
    """Clip gradients of which some are sparse, which torch refuses, by the numbers that they hold; the others are 0."""
    numbers = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            # Equal rows must be one before their squares are summed.
            parameter.grad = parameter.grad.coalesce()
            numbers.append(SimpleNamespace(grad=parameter.grad.values()))
        else:
            numbers.append(SimpleNamespace(grad=parameter.grad))
    clip: Callable[..., Any] = clip_grad_norm_ if kind == GradClipAlgorithmType.NORM else clip_grad_value_
    clip(numbers, value)


@contextlib.contextmanager
def without_gradients(parameters: Iterable[Parameter]) -> Iterator[None]:
    """Take the gradients of some parameters away for a while."""
    gradients = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
