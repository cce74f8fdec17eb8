"""Rotation prediction: RotNet (Gidaris, Singh and Komodakis 2018, arXiv:1803.07728).

A picture is turned by 0, 90, 180 or 270 degrees and the angle is told. Square pictures are turned without loss, by
moving pixels; nothing is interpolated and no corner left empty, so the pixels themselves do not betray the angle.
"""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.transformer import initialise
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_of_classes
from lit_pretrain.objectives.classification import classification_output
from lit_pretrain.objectives.layout_exchange import exchange_layouts
from lit_pretrain.objectives.objective import Batch, EncoderPass, ObjectiveOutput, Vocabulary
from lit_pretrain.objectives.picture_panels import Caption, grid
from lit_pretrain.objectives.picture_shortcuts import border_features, color_layout_features, compression_features
from lit_pretrain.objectives.vision_objective import Shortcut, VisionObjective
from lit_pretrain.required import required

if TYPE_CHECKING:
    from PIL.Image import Image

    from lit_pretrain.backbone.vision_encoder import VisionEncoder

ANGLES = (0, 90, 180, 270)


class Rotation(VisionObjective):
    """Tell by which angle a picture was turned.

    The head is one linear layer on the pooled features, as RotNet's is on its averaged last feature map. Flip pictures
    left to right only: upside down, they look as if turned by 180 degrees. Accuracy is told per angle too, for some
    pictures have no upright.

    Args:
        views: `all` turns each picture by all four angles in one batch, which RotNet found best, so that four times as
            many pictures pass through the encoder; `random` by one each.
        weight: Factor of this loss in the sum.
        layout: `exchanged` gives each picture the layout of colours of another one, turned at random, so that where it
            is bright tells nothing of the angle; `own` leaves it.
    """

    name = "rotation"
    training_settings = ("layout", "views", "weight")

    def __init__(
        self,
        views: Literal["all", "random"] = "all",
        weight: float = 1.0,
        layout: Literal["own", "exchanged"] = "own",
    ) -> None:
        super().__init__()
        self.layout = layout
        self.views = views
        self.weight = weight
        self.classifier: nn.Linear | None = None

    def build(self, encoder: "VisionEncoder", vocabulary: Vocabulary | None = None) -> None:
        """Make the classifier."""
        if self.classifier is None:
            self.classifier = nn.Linear(encoder.width, len(ANGLES))
            initialise(self)

    def turn(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Turn clean pictures.

        Args:
            images: (B, C, S, S).
            generator: Draws the angles if `views` is `random`, and the layouts that are exchanged.

        Returns:
            Turned pictures and labels (M,), the number of quarter turns anticlockwise: the four views of the first
            picture, then those of the second, and so on (M = 4 B), or a view of each (M = B).
        """
        if self.layout == "exchanged":
            images = exchange_layouts(images, generator)
        views = torch.stack([torch.rot90(images, turns, dims=(2, 3)) for turns in range(len(ANGLES))], dim=1)
        if self.views == "all":
            return views.flatten(0, 1), torch.arange(len(ANGLES), device=images.device).repeat(len(images))
        labels = torch.randint(0, len(ANGLES), (len(images),), generator=generator, device=images.device)
        return views[torch.arange(len(images), device=images.device), labels], labels

    def make_pass(self, batch: Batch, encoder: "VisionEncoder", generator: torch.Generator) -> EncoderPass:
        """Turn the clean batch."""
        images, labels = self.turn(batch["images"], generator)
        return EncoderPass({"images": encoder.normalize(images)}, {"labels": labels})

    def logits(self, features: Tensor, encoder: "VisionEncoder") -> Tensor:
        """Scores (M, 4) of the angles."""
        return required(self.classifier)(encoder.forward_head(features))

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: "VisionEncoder"
    ) -> ObjectiveOutput:
        """Mean cross-entropy over the turned pictures."""
        names = [f"{angle}_degrees" for angle in ANGLES]
        return classification_output(self.logits(features, encoder), targets["labels"], names, self.training)

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """All angles are equally frequent."""
        return chance_of_classes([1 / len(ANGLES)] * len(ANGLES), [f"{angle}_degrees" for angle in ANGLES])

    def pass_shape(self, encoder: "VisionEncoder", samples: int, sequence_length: int) -> tuple[int, int]:
        """Four whole pictures a sample, or one."""
        return samples * (len(ANGLES) if self.views == "all" else 1), encoder.prefix_tokens + encoder.patches

    def forward_flops(self, encoder: "VisionEncoder", samples: int, sequence_length: int) -> float:
        """Operations of the linear layer."""
        return 2.0 * self.pass_shape(encoder, samples, sequence_length)[0] * encoder.width * len(ANGLES)

    @torch.no_grad()
    def examples(
        self,
        encoder: "VisionEncoder",
        batch: Batch,
        vocabulary: Vocabulary | None,
        generator: torch.Generator,
        count: int = 8,
    ) -> "Image":
        """Each picture as it was turned, a picture a row if all four views are made, with the angle that is told."""
        images, labels = self.turn(batch["images"][:count], generator)
        probabilities = (
            self.logits(encoder.forward_features(encoder.normalize(images)), encoder).float().softmax(dim=-1)
        )
        captions = []
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
            predicted = max(range(len(ANGLES)), key=row.__getitem__)
            text = f"predicted {ANGLES[predicted]}° ({row[predicted]:.0%})"
            if self.views == "random":
                text = f"turned {ANGLES[label]}°\n{text}"
            captions.append(Caption(text, predicted == label))
        starts = range(0, len(images), len(ANGLES))
        headings = [f"turned {angle}°" for angle in ANGLES] if self.views == "all" else None
        return grid(
            [list(images[start : start + len(ANGLES)]) for start in starts],
            [captions[start : start + len(ANGLES)] for start in starts],
            headings,
        )

    @torch.no_grad()
    def shortcuts(self, encoder: "VisionEncoder", batch: Batch, generator: torch.Generator) -> dict[str, Shortcut]:
        """What tells angles without an eye for shapes.

        Returns:
            `borders`: padding, bars and empty corners; `compression_grid`: the blocks of JPEG files; `color_layout`:
            where it is bright. The last is no leak, but features of a model that is no better are worth little.
        """
        images, labels = self.turn(batch["images"], generator)
        return {
            "borders": Shortcut(border_features(images), labels, len(ANGLES)),
            "compression_grid": Shortcut(compression_features(images), labels, len(ANGLES)),
            "color_layout": Shortcut(color_layout_features(images), labels, len(ANGLES)),
        }
