"""Mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899) of labelled pictures.

The mixing is timm's. It draws from numpy's global state, which is set from the step's own seed around it and put back
after it, so that a resumed training draws as an uninterrupted one.
"""

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from lit_pretrain.data.randomness import derive_seed
from lit_pretrain.errors import UserError, check_number


@dataclass(frozen=True)
class MixingConfig:
    """Settings of mixing; off by default.

    Args:
        mixup: Alpha of mixup's Beta distribution (0.8 in DeiT); 0 for none.
        cutmix: Alpha of CutMix's Beta distribution (1.0 in DeiT); 0 for none.
        probability: Of mixing a batch at all.
        switch_probability: Of CutMix rather than mixup where both are on.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        for name in ("mixup", "cutmix"):
            check_number(f"model.mixing.{name}", getattr(self, name), least=0)
        for name in ("probability", "switch_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"model.mixing.{name} is {getattr(self, name)}: give a probability from 0 to 1.")

    @property
    def on(self) -> bool:
        """Whether anything is mixed."""
        return self.mixup > 0 or self.cutmix > 0


def mix_pictures(
    images: Tensor, labels: Tensor, classes: int, config: MixingConfig, parts: tuple[int | str, ...]
) -> tuple[Tensor, Tensor]:
    """Mix a batch with itself in reverse order.

    Args:
        images: (B, C, H, W) float, B even.
        labels: (B,) integers, or (B, C) floats of several labels.
        classes: Number of classes.
        config: What is mixed.
        parts: What the draws are a function of.

    Returns:
        Pictures and (B, classes) targets.
    """
    from timm.data.mixup import Mixup

    mixup = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.probability,
        switch_prob=config.switch_probability,
        label_smoothing=0.0,
        num_classes=classes,
        multi_label=labels.dim() == 2,
    )
    before, kind = numpy.random.get_state(), torch.get_default_dtype()
    numpy.random.seed(derive_seed("mixing", *parts) % 2**32)
    # Shares of classes are exact, whatever the trainer's precision makes the default of what is created in a step.
    torch.set_default_dtype(torch.float32)
    try:
        # It works in place: the batch's own tensor stays as it is.
        return mixup(images.clone(), labels)
    finally:
        torch.set_default_dtype(kind)
        numpy.random.set_state(before)
