"""What the pretext tasks on pictures have in common, beyond `Objective`.

They are handed clean pictures, float in [0, 1], cropped and flipped already; each makes its own corrupted input and
passes it through `encoder.normalize`. Beside loss and metrics each tells what it costs, draws a panel for a person, and
names what should carry no signal, so that a shortcut (Doersch et al. 2015, arXiv:1505.05192, section 4) is seen and not
guessed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_pretrain.objectives.objective import Batch, Objective
from lit_pretrain.picture_facts import PictureFacts

if TYPE_CHECKING:
    from PIL.Image import Image

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
    """Base of the pretext tasks on pictures.

    A batch holds `images` (B, 3, H, W), float in [0, 1], H and W being the encoder's image size, and `sample_id` (B,).
    """

    def check_pictures(self, encoder: "VisionEncoder", facts: PictureFacts) -> None:
        """Raise `UserError` if this task cannot work at the encoder's size or on these pictures."""

    def sequences(self, encoder: "VisionEncoder", samples: int) -> tuple[int, int]:
        """Sequences that a batch of `samples` pictures sends through the encoder, and the tokens of each."""
        raise NotImplementedError

    @torch.no_grad()
    def panel(
        self, encoder: "VisionEncoder", batch: Batch, generator: torch.Generator, count: int = 8
    ) -> "Image | None":
        """A picture of what the model is asked and what it answers, for the first `count` samples."""
        return None

    @torch.no_grad()
    def shortcuts(self, encoder: "VisionEncoder", batch: Batch, generator: torch.Generator) -> dict[str, Shortcut]:
        """What should carry no signal, by name; drawn as in training."""
        return {}
