"""What the pretext tasks on pictures have in common, beyond `Objective`.

They are handed clean pictures, float in [0, 1], cropped and flipped already; each makes its own corrupted input and
passes it through `encoder.normalize`. Its `examples` are a picture. Beside what every objective has, each names what
should carry no signal, so that a shortcut (Doersch et al. 2015, arXiv:1505.05192, section 4) is seen and not
guessed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_pretrain.objectives.objective import Batch, Objective

if TYPE_CHECKING:
    from lit_pretrain.backbone.vision_encoder import VisionEncoder


@dataclass(frozen=True)
class Shortcut:
    """Something that should say nothing of the answer, for a small classifier to try.

    Attributes:
        features: (M, F) float, free of gradients.
        labels: (M,) integers: the answer.
        classes: Number of answers.
    """

    features: Tensor
    labels: Tensor
    classes: int


class VisionObjective(Objective):
    """Base of the pretext tasks on pictures; what their batches hold says `PictureBatch`."""

    @torch.no_grad()
    def shortcuts(self, encoder: "VisionEncoder", batch: Batch, generator: torch.Generator) -> dict[str, Shortcut]:
        """What should carry no signal, by name; drawn as in training."""
        return {}
