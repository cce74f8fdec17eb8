"""Relative patch location (Doersch, Gupta and Efros 2015, arXiv:1505.05192).

Given a patch and one of its eight neighbours, tell where the neighbour lies. The settings follow Kolesnikov, Zhai and
Beyer (2019, arXiv:1901.09005), who cut nine patches out of the cells of a 3 x 3 grid, turn each to grey with a
probability of about 2/3 and standardise each.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.transformer import initialise
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_of_classes
from lit_pretrain.objectives.classification import classification_output
from lit_pretrain.objectives.objective import Batch, EncoderPass, ObjectiveOutput, Vocabulary
from lit_pretrain.objectives.patch_cutting import (
    CELLS,
    PatchGrid,
    cut,
    drop_channels,
    drop_to_grey,
    grid_for,
    standardize,
)
from lit_pretrain.objectives.patch_puzzles import puzzle_panel
from lit_pretrain.objectives.picture_shortcuts import chroma_features, continuity_features
from lit_pretrain.objectives.vision_objective import Shortcut, VisionObjective
from lit_pretrain.required import required

if TYPE_CHECKING:
    from PIL.Image import Image

    from lit_pretrain.backbone.vision_encoder import VisionEncoder

# Classes, row by row around the centre.
PLACES = ("top_left", "top", "top_right", "left", "right", "bottom_left", "bottom", "bottom_right")


class PatchLocation(VisionObjective):
    """Tell where the neighbour of a patch lies: one of eight places, so chance is 1/8.

    In the mode `crops` (Doersch's) the nine patches of a picture pass through the encoder one by one, as small pictures
    of their own with their positions resized; the centre is paired with its eight neighbours. In the mode `tokens` the
    whole picture passes once, without positions, and neighbouring tokens are asked, as many pairs as wanted; but these
    patches touch and see each other, so contours that run on help.

    Each patch keeps its picture's orientation; flip pictures before, left to right only.

    Args:
        mode: `crops` or `tokens`.
        gap: Least gap between neighbouring patches, as a share of a cell (a third of the picture's side), rounded to
            pixels, at least one unless 0; mode `crops`. It keeps contours from running on from patch to patch.
        jitter: How far a patch moves within its cell along each axis, in the same way; mode `crops`.
        patch_pixels: Pixels of a patch's side, a multiple of the encoder's patch size; null for the largest that leaves
            gap and jitter; mode `crops`.
        drop_colour: What hides chromatic aberration, which tells where in a picture a patch lies: `grey` turns patches
            to grey, `channels` keeps one channel and fills the others with noise (Doersch's, the more thorough: the
            displaced edges of red and blue leave a trace in grey), `none` keeps the colours.
        drop_share: Probability that this happens to a patch; in the mode `tokens` to a picture.
        normalize_patches: Whether each patch gets mean 0 and deviation 1, on top of the encoder's own normalisation, so
            that brightness does not tell a neighbour; mode `crops`.
        pairs: Pairs asked of a picture in the mode `tokens`; `crops` has eight.
        hidden_width: Width of the head's hidden layer; null for the encoder's.
        weight: Factor of this loss in the sum.
    """

    name = "patch_location"
    training_settings = (
        "gap",
        "jitter",
        "drop_colour",
        "drop_share",
        "normalize_patches",
        "pairs",
        "weight",
    )

    def __init__(
        self,
        mode: Literal["crops", "tokens"] = "crops",
        gap: float = 0.1,
        jitter: float = 0.1,
        patch_pixels: int | None = None,
        drop_colour: Literal["none", "grey", "channels"] = "grey",
        drop_share: float = 0.66,
        normalize_patches: bool = True,
        pairs: int = 32,
        hidden_width: int | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in (("patch_pixels", patch_pixels), ("hidden_width", hidden_width)):
            check_number(f"PatchLocation.{name}", value, least=1)
        if not (gap >= 0 and jitter >= 0 and gap + jitter < 1):
            raise UserError(
                f"PatchLocation.gap {gap} and jitter {jitter} must be shares of a cell whose sum is below 1."
            )
        if not 0 <= drop_share <= 1:
            raise UserError(f"PatchLocation.drop_share is {drop_share}: give a probability from 0 to 1.")
        if pairs < 1:
            raise UserError(f"PatchLocation.pairs is {pairs}: give at least 1.")
        self.mode = mode
        self.gap = gap
        self.jitter = jitter
        self.patch_pixels = patch_pixels
        self.drop_colour = drop_colour
        self.drop_share = drop_share
        self.normalize_patches = normalize_patches
        self.pairs = pairs
        self.hidden_width = hidden_width
        self.weight = weight
        # Tokens are read one by one and without positions, small pictures as a whole.
        self.uses_pooling = self.uses_positions = mode == "crops"
        self.head: nn.Sequential | None = None

    def build(self, encoder: "VisionEncoder", vocabulary: Vocabulary | None = None) -> None:
        """Make the head: layer norm, not batch norm, which could pass on what other patches of a picture hold."""
        if self.head is None:
            hidden = encoder.width if self.hidden_width is None else self.hidden_width
            self.head = nn.Sequential(
                nn.Linear(2 * encoder.width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, len(PLACES))
            )
            initialise(self)

    def check_data(self, encoder: "VisionEncoder", facts: DataFacts) -> None:
        """Three by three cells, or patches, must fit into a picture."""
        if self.mode == "crops":
            self.patch_grid(encoder)
        elif encoder.grid_size < CELLS:
            raise UserError(
                f"PatchLocation in the mode 'tokens' needs at least 3 x 3 patches, and a picture of "
                f"{encoder.image_size} pixels has {encoder.grid_size} x {encoder.grid_size}: set encoder.image_size to "
                f"at least {CELLS * encoder.patch_size}, or a smaller encoder.patch_size."
            )

    def patch_grid(self, encoder: "VisionEncoder") -> PatchGrid:
        """Where the nine patches of the mode `crops` lie; a `UserError` if they do not fit."""
        return grid_for("PatchLocation", encoder, self.gap, self.jitter, self.patch_pixels)

    # -- what is seen and asked

    def see(self, images: Tensor, encoder: "VisionEncoder", generator: torch.Generator | None) -> Tensor:
        """What passes through the encoder of clean pictures (B, 3, S, S), colours dropped, still in [0, 1].

        Returns:
            (B * 9, 3, p, p) patches, those of a picture row by row, in the mode `crops`; (B, 3, S, S) in `tokens`.
        """
        if self.mode == "crops":
            grid = self.patch_grid(encoder)
            images = cut(images, grid.corners(len(images), generator, images.device), grid.patch).flatten(0, 1)
        if self.drop_colour == "grey":
            return drop_to_grey(images, self.drop_share, generator)
        if self.drop_colour == "channels":
            return drop_channels(images, self.drop_share, encoder.mean, generator)
        return images

    def encoder_inputs(self, views: Tensor, encoder: "VisionEncoder") -> dict[str, Any]:
        """Arguments of `forward_features` for what `see` returned."""
        images = encoder.normalize(views)
        if self.mode == "tokens":
            return {"images": images, "with_positions": False}
        return {"images": standardize(images) if self.normalize_patches else images}

    def ask(
        self,
        encoder: "VisionEncoder",
        samples: int,
        generator: torch.Generator | None,
        device: torch.device,
        around_one: bool = False,
    ) -> dict[str, Tensor]:
        """Draw pairs of patches and their answers.

        Args:
            encoder: Tells how many patches there are.
            samples: Number of pictures, B.
            generator: Draws centres and neighbours in the mode `tokens`.
            device: Where the answer lies.
            around_one: Whether all eight neighbours of one centre are asked in the mode `tokens` too.

        Returns:
            `centres`, `neighbours` (which patch, row by row) and `labels` (see `PLACES`), each (B, K) integers.
        """
        columns = CELLS if self.mode == "crops" else encoder.grid_size
        complete = around_one or self.mode == "crops"
        # Only a patch within the border can be a centre: of nine the fifth alone.
        inner = columns - 2
        drawn = torch.randint(0, inner**2, (samples, 1 if complete else self.pairs), generator=generator, device=device)
        centres = (drawn // inner + 1) * columns + drawn % inner + 1
        if complete:
            centres = centres.expand(-1, len(PLACES))
            labels = torch.arange(len(PLACES), device=device).expand(samples, -1)
        else:
            labels = torch.randint(0, len(PLACES), centres.shape, generator=generator, device=device)
        place = labels + (labels >= len(PLACES) // 2).long()  # of nine places, the centre counted
        neighbours = centres + (place // CELLS - 1) * columns + place % CELLS - 1
        return {"centres": centres, "neighbours": neighbours, "labels": labels}

    def make_pass(self, batch: Batch, encoder: "VisionEncoder", generator: torch.Generator) -> EncoderPass:
        """Cut the clean batch, or take it whole without positions, and draw the pairs."""
        images = batch["images"]
        views = self.see(images, encoder, generator)
        targets = self.ask(encoder, len(images), generator, images.device)
        return EncoderPass(self.encoder_inputs(views, encoder), targets)

    # -- what is answered

    def patch_features(self, features: Tensor, encoder: "VisionEncoder") -> Tensor:
        """One vector a patch, (B, N, D), of the encoder's features."""
        if self.mode == "tokens":
            return encoder.patch_tokens(features)
        return encoder.forward_head(features).unflatten(0, (-1, CELLS**2))

    def logits(self, features: Tensor, targets: dict[str, Tensor], encoder: "VisionEncoder") -> Tensor:
        """Scores (B, K, 8) of the places."""
        return required(self.head)(join_pairs(self.patch_features(features, encoder), targets))

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: "VisionEncoder"
    ) -> ObjectiveOutput:
        """Mean cross-entropy over the pairs."""
        logits = self.logits(features, targets, encoder).flatten(0, 1)
        return classification_output(logits, targets["labels"].flatten(), PLACES, self.training)

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """All places are equally frequent."""
        return chance_of_classes([1 / len(PLACES)] * len(PLACES), PLACES)

    def pass_shape(self, encoder: "VisionEncoder", samples: int, sequence_length: int) -> tuple[int, int]:
        """Nine small pictures a sample, or one whole."""
        if self.mode == "tokens":
            return samples, encoder.prefix_tokens + encoder.patches
        side = self.patch_grid(encoder).patch // encoder.patch_size
        return samples * CELLS**2, encoder.prefix_tokens + side**2

    def forward_flops(self, encoder: "VisionEncoder", samples: int, sequence_length: int) -> float:
        """Operations of the head's matrix products for all pairs."""
        pairs = samples * (len(PLACES) if self.mode == "crops" else self.pairs)
        hidden = encoder.width if self.hidden_width is None else self.hidden_width
        return 2.0 * pairs * hidden * (2 * encoder.width + len(PLACES))

    # -- what is looked at

    @torch.no_grad()
    def examples(
        self,
        encoder: "VisionEncoder",
        batch: Batch,
        vocabulary: Vocabulary | None,
        generator: torch.Generator,
        count: int = 8,
    ) -> "Image":
        """The puzzle as the model solves it, beside the true one."""
        images = batch["images"][:count]
        views = self.see(images, encoder, generator)
        targets = self.ask(encoder, len(images), generator, images.device, around_one=True)
        features = encoder.forward_features(**self.encoder_inputs(views, encoder))
        probabilities = self.logits(features, targets, encoder).float().softmax(dim=-1)
        if self.mode == "crops":
            patches = views.unflatten(0, (-1, CELLS**2))
        else:
            around = torch.cat(
                [targets["neighbours"][:, :4], targets["centres"][:, :1], targets["neighbours"][:, 4:]], 1
            )
            corners = torch.stack([around // encoder.grid_size, around % encoder.grid_size], dim=-1)
            patches = cut(views, encoder.patch_size * corners, encoder.patch_size)
        return puzzle_panel(images, patches, probabilities)

    @torch.no_grad()
    def shortcuts(self, encoder: "VisionEncoder", batch: Batch, generator: torch.Generator) -> dict[str, Shortcut]:
        """Of crops, `borders` (contours that run on) and `chroma_offsets`; of tokens, `positions_only`."""
        if self.mode == "tokens":
            # Even grey pictures: all that can differ from patch to patch are positions.
            encoder_pass = self.make_pass({"images": torch.full_like(batch["images"], 0.5)}, encoder, generator)
            features = self.patch_features(encoder.forward_features(**encoder_pass.inputs), encoder).float()
            answers = {"positions_only": join_pairs(differences(features), encoder_pass.targets)}
        else:
            encoder_pass = self.make_pass(batch, encoder, generator)
            patches = encoder_pass.inputs["images"].unflatten(0, (-1, CELLS**2))
            chroma = chroma_features(patches.flatten(0, 1)).unflatten(0, (-1, CELLS**2))
            answers = {
                "borders": continuity_features(
                    pick(patches, encoder_pass.targets["centres"]), pick(patches, encoder_pass.targets["neighbours"])
                ),
                "chroma_offsets": join_pairs(chroma, encoder_pass.targets),
            }
        labels = encoder_pass.targets["labels"].flatten()
        return {name: Shortcut(value.flatten(0, 1), labels, len(PLACES)) for name, value in answers.items()}


def pick(values: Tensor, indices: Tensor) -> Tensor:
    """(B, K, ...) of (B, N, ...) by (B, K) indices."""
    return values[torch.arange(len(values), device=values.device)[:, None], indices]


def join_pairs(values: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Centre's and neighbour's of (B, N, D) values, one after the other: (B, K, 2 D)."""
    return torch.cat([pick(values, targets["centres"]), pick(values, targets["neighbours"])], dim=-1)


def differences(features: Tensor) -> Tensor:
    """How (B, N, D) features of patches differ from their mean; nothing where it is what rounding leaves.

    Equal patches come out unequal in the last digits, by where they lie in a batch, and a classifier that scales its
    features up would read even that.
    """
    apart = features - features.mean(dim=1, keepdim=True)
    size = features.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return torch.where(apart.abs() > 0.01 * size, apart, 0.0)
