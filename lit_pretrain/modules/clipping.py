"""Gradient clipping where Lightning's own refuses: a fused optimiser in bf16, and the norm under FSDP.

Lightning 2.6 takes every fused optimiser under autocast for one that unscales gradients within its step. That is so in
fp16 with a scaler; bf16 has no scaler and clips as fp32 does. Under FSDP a gradient's norm is spread over the ranks,
and only the wrapped module can sum it up.
"""

from lightning import Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch.distributed.fsdp import FullyShardedDataParallel
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
    kind, plugin = GradClipAlgorithmType(algorithm), trainer.precision_plugin
    if isinstance(trainer.strategy.model, FullyShardedDataParallel) and kind == GradClipAlgorithmType.NORM:
        trainer.strategy.model.clip_grad_norm_(value)
    elif getattr(plugin, "scaler", None) is None:
        Precision.clip_gradients(plugin, optimizer, value, kind)
    else:
        plugin.clip_gradients(optimizer, value, kind)
