"""Colorization: tell the colours of a grey picture (Zhang, Isola and Efros 2016, arXiv:1603.08511).

The encoder is shown the lightness of Lab in all three channels, so that fine-tuning on colours needs no change of the
model. Asked are a and b of cells, squares of a few pixels. A grey car may have had any colour, and the mean of all
colours is grey again: therefore colours are predicted as classes, of which rare ones count more.
"""

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.backbone.transformer import initialise
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies
from lit_pretrain.objectives.color_bins import LARGEST_BIN, LIMIT, SMALLEST_BIN, ColorBins
from lit_pretrain.objectives.color_cells import COLORLESS, cell_means, has_colors, lightness_and_colors, paint
from lit_pretrain.objectives.linear_cross_entropy import linear_cross_entropy
from lit_pretrain.objectives.objective import Batch, EncoderPass, ObjectiveOutput, Vocabulary, global_mean
from lit_pretrain.objectives.picture_panels import Caption, grid
from lit_pretrain.objectives.vision_objective import Shortcut, VisionObjective
from lit_pretrain.required import required

if TYPE_CHECKING:
    from PIL.Image import Image

    from lit_pretrain.backbone.vision_encoder import VisionEncoder

GREYEST_DATA = 0.99
MOST_CELLS = 4  # along a patch's side, if their number is left open
# Cells that accuracy and distances are taken from in training, drawn anew each step; in evaluation all are.
SCORED_CELLS = 4096
PATCHES_AT_ONCE = 4096  # when no gradients are needed, so that logits never fill the memory
PICTURES_AT_ONCE = 64  # when frequencies are measured
COLORS_AT_ONCE = 2**18
# In the check for shortcuts: cells of a picture, classes (the most frequent bins, and all others as one), and the
# width of the positions.
CHECKED_CELLS, CHECKED_CLASSES, POSITION_WIDTH = 16, 16, 32


class Colorization(VisionObjective):
    """Tell the colours of each patch's cells from the lightness of the picture.

    Args:
        mode: `bins` predicts a distribution over bins of the colour plane; `regression` a and b themselves by least
            squares, the paper's baseline, which gives duller colours.
        cells_per_patch: Cells along a patch's side, a divisor of the encoder's patch size; null for the largest one
            that is at most 4 and leaves a cell two pixels: 2 for patches of 4 pixels, 4 for those of 8 and 16.
        bin_size: Distance of neighbouring bins, in units of Lab.
        neighbors: Nearest bins over which a cell's target is spread (10 in the authors' code).
        sigma: Standard deviation of that spread, in units of Lab.
        rebalancing: How much rare colours are weighted up, from 0 (not at all) to 1 (by their inverse frequency); see
            `ColorBins`. The frequencies come from `measure`; before it all bins weigh alike.
        temperature: Of the annealed mean that makes one colour of a distribution; see `ColorBins.annealed_mean`.
        cell_share: Share of the cells that enter the loss, drawn anew each step, to save time where pictures are large.
        weight: Factor of this loss in the sum.
    """

    name = "colorization"
    training_settings = ("rebalancing", "temperature", "cell_share", "weight")
    uneven = True
    uses_pooling = False

    def __init__(
        self,
        mode: Literal["bins", "regression"] = "bins",
        cells_per_patch: int | None = None,
        bin_size: int = 10,
        neighbors: int = 5,
        sigma: float = 5.0,
        rebalancing: float = 0.5,
        temperature: float = 0.38,
        cell_share: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in (("sigma", sigma), ("temperature", temperature)):
            check_number(f"Colorization.{name}", value, above=0)
        for name, count in (("cells_per_patch", cells_per_patch), ("neighbors", neighbors)):
            check_number(f"Colorization.{name}", count, least=1)
        check_number("Colorization.bin_size", bin_size, least=SMALLEST_BIN, most=LARGEST_BIN)
        if not 0.0 <= rebalancing <= 1.0:
            raise UserError(f"Colorization.rebalancing is {rebalancing}: give a share from 0 to 1.")
        if not 0.0 < cell_share <= 1.0:
            raise UserError(f"Colorization.cell_share is {cell_share}: give a share above 0, at most 1.")
        self.mode = mode
        self.cells_per_patch = cells_per_patch
        self.bin_size = bin_size
        self.neighbors = neighbors
        self.sigma = sigma
        self.rebalancing = rebalancing
        self.temperature = temperature
        self.cell_share = cell_share
        self.weight = weight
        self.bins: ColorBins | None = None
        self.head: nn.Linear | None = None
        self._chance: dict[str, float] = {}

    # -- before training

    def build(self, encoder: "VisionEncoder", vocabulary: Vocabulary | None = None) -> None:
        """Make the bins, and the head: one linear layer from a patch's features to all its cells."""
        if self.head is None:
            self.patch_size, self.cells = encoder.patch_size, self.cells_of(encoder)
            if self.mode == "bins":
                self.bins = ColorBins(self.bin_size, self.neighbors, self.sigma, self.rebalancing)
            self.head = nn.Linear(encoder.width, self.cells**2 * (2 if self.bins is None else len(self.bins)))
            initialise(self.head)

    def cells_of(self, encoder: "VisionEncoder") -> int:
        """Cells along a patch's side; a `UserError` if they do not fit."""
        patch_size = encoder.patch_size
        if self.cells_per_patch is None:
            most = min(MOST_CELLS, max(1, patch_size // 2))
            return max(cells for cells in range(1, most + 1) if patch_size % cells == 0)
        if self.cells_per_patch < 1 or patch_size % self.cells_per_patch:
            raise UserError(
                f"Colorization.cells_per_patch is {self.cells_per_patch}, which does not divide encoder.patch_size "
                f"{patch_size}: give a divisor, or null."
            )
        return self.cells_per_patch

    def check_data(self, encoder: "VisionEncoder", facts: DataFacts) -> None:
        """Pictures need colours, and patches a whole number of cells."""
        self.cells_of(encoder)
        if facts.grey_share > GREYEST_DATA:
            raise UserError(
                f"Colorization has nothing to learn here, for {facts.grey_share:.1%} of the pictures are grey: take "
                "data with colours, or another objective."
            )

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Take the frequencies of colours, which the weights depend on, from clean pictures (N, 3, S, S) in [0, 1].

        To be called once before training, after `build`, with the same pictures in every process; checkpoints keep
        what was found.

        Raises:
            UserError: If no picture has colours, and colours are told by how frequent they are.
        """
        device = required(self.head).weight.device
        parts = []
        for part in images.split(PICTURES_AT_ONCE):
            colors = lightness_and_colors(part.to(device), self.patch_size, self.cells)[1]
            parts.append(colors[has_colors(colors)].flatten(0, 2))
        colors = torch.cat(parts)
        if not len(colors):
            if self.bins is None:
                return
            raise UserError(
                f"None of the {len(images)} pictures that Colorization measured has an a or b of Lab beyond "
                f"{COLORLESS:g}: take data with colours, or another objective."
            )
        if self.bins is not None:
            self.bins.measure(colors)
        self._chance = self.chance_of_colors(colors)

    def chance_of_colors(self, colors: Tensor) -> dict[str, float]:
        """Statistics of telling the same of all colours (M, 2): the best that this can be, and for distances grey."""
        figures = {"ab_error": float(colors.norm(dim=-1).double().mean())}
        if self.bins is None:
            return figures | {"loss": float((colors.double() / LIMIT).var(dim=0, correction=0).sum())}
        counts, weighted = torch.zeros(2, len(self.bins), dtype=torch.float64, device=colors.device)
        nearest = torch.zeros_like(counts)
        for part in colors.split(COLORS_AT_ONCE):
            targets = self.bins.soft_targets(part)
            first, bins = targets.indices[:, 0], targets.indices.flatten()
            nearest += torch.bincount(first, minlength=len(nearest))
            shares = targets.probabilities.double()
            counts.index_add_(0, bins, shares.flatten())
            weighted.index_add_(0, bins, (shares * self.bins.weights[first, None]).flatten())
        # The least sum of - weight x log(told) is where what is told is the weights' own distribution.
        losses = [-float(torch.xlogy(sums, sums / sums.sum()).sum() / len(colors)) for sums in (weighted, counts)]
        accuracy = float(nearest.max() / len(colors))
        return figures | {"loss": losses[0], "cross_entropy": losses[1], "accuracy": accuracy}

    # -- what is seen and asked

    def make_pass(self, batch: Batch, encoder: "VisionEncoder", generator: torch.Generator | None) -> EncoderPass:
        """Show the lightness, ask the cells' colours, and draw which of them enter loss and statistics."""
        images = batch["images"]
        lightness, colors = lightness_and_colors(images, self.patch_size, self.cells)
        targets = {"colors": colors}
        batch_size, patches, cells, _ = colors.shape
        if self.cell_share < 1.0:
            shape = cells, batch_size, patches
            drawn = torch.rand(shape, generator=generator, device=images.device, dtype=torch.float32)
            drawn = drawn.topk(max(1, round(self.cell_share * patches)), dim=-1).indices
            pictures = torch.arange(batch_size, device=images.device)[:, None]
            targets["rows"] = (pictures * patches + drawn).flatten(1)
        if self.training:
            count = max(1, SCORED_CELLS // cells)
            targets["scored"] = torch.randint(
                0, batch_size * patches, (count,), generator=generator, device=images.device
            )
        return EncoderPass({"images": encoder.normalize(lightness.expand(-1, 3, -1, -1))}, targets)

    def targets_of(self, targets: dict[str, Tensor], sample: int, samples: int) -> dict[str, Tensor]:
        """As the base's; patches are counted through the batch, and which of them are scored is no sample's own."""
        own = super().targets_of({"colors": targets["colors"]}, sample, samples)
        if "rows" in targets:
            rows, patches = targets["rows"], targets["colors"].shape[1]
            drawn = rows.shape[1] // samples
            own["rows"] = rows[:, sample * drawn : (sample + 1) * drawn] - sample * patches
        return own

    # -- loss and statistics

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: "VisionEncoder"
    ) -> ObjectiveOutput:
        """Mean over the cells of pictures with colours: weighted soft cross-entropy, or squared distance over 110."""
        tokens = encoder.patch_tokens(features).flatten(0, 1)
        colors = targets["colors"].flatten(0, 1)
        valid = has_colors(targets["colors"]).float().repeat_interleave(len(tokens) // len(features))
        loss_of = self.regression_loss if self.bins is None else self.bins_loss
        total, count, statistics = loss_of(tokens, colors, valid, targets.get("rows"))
        statistics = {"loss": (total.detach(), count)} | statistics
        if "scored" in targets:
            scored = targets["scored"]
            tokens, colors, valid = tokens[scored], colors[scored], valid[scored]
        return ObjectiveOutput(
            global_mean(total, count, self.training), statistics | self.scores(tokens, colors, valid)
        )

    def terms(self, targets: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The cells of pictures with colours that enter."""
        colors = targets["colors"]
        cells = targets["rows"].numel() // len(colors) if "rows" in targets else colors.shape[1] * colors.shape[2]
        return {"loss": has_colors(colors).sum() * cells}

    def bins_loss(
        self, tokens: Tensor, colors: Tensor, valid: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Cross-entropy with the soft targets, weighted at their nearest bins.

        The cells of a patch are taken one after the other, each with its own rows of the head's matrix.

        Args:
            tokens: (M, D) features of patches.
            colors: (M, cells ** 2, 2).
            valid: (M,) 1 or 0 where the picture is grey.
            rows: (cells ** 2, K) patches that enter, for each cell; null for all.

        Returns:
            Sum of the losses, number of cells, statistics.
        """
        cells = self.cells**2
        head, bins = required(self.head), required(self.bins)
        weights, biases = head.weight.view(cells, len(bins), -1), head.bias.view(cells, -1)
        total = plain = count = torch.zeros((), dtype=torch.float32, device=tokens.device)
        for cell in range(cells):
            chosen = slice(None) if rows is None else rows[cell]
            targets, carries = bins.soft_targets(colors[chosen, cell]), valid[chosen]
            result = linear_cross_entropy(
                tokens[chosen],
                weights[cell],
                biases[cell],
                targets.indices,
                carries * bins.weights[targets.indices[:, 0]],
                target_shares=targets.probabilities,
            )
            total = total + result.total
            plain = plain + (result.losses * carries).sum()
            count = count + carries.sum()
        return total, count, {"cross_entropy": (plain, count)}

    def regression_loss(
        self, tokens: Tensor, colors: Tensor, valid: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Squared distance, in units of 110, a's and b's largest value; arguments and result as of `bins_loss`."""
        distances = (
            (at_least_float32(required(self.head)(tokens)).view_as(colors) - colors / LIMIT).square().sum(dim=-1)
        )
        carries = valid[:, None].expand_as(distances)
        if rows is not None:
            distances, carries = distances.T.gather(1, rows), carries.T.gather(1, rows)
        return (distances * carries).sum(), carries.sum(), {}

    @torch.no_grad()
    def scores(self, tokens: Tensor, colors: Tensor, valid: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """How far the told colours are from the true ones, beside the distance of grey; see `bins_loss`."""
        predicted, predicted_bins = self.decode(tokens)
        carries = valid[:, None].expand(-1, colors.shape[1])
        values = {"ab_error": (predicted - colors).norm(dim=-1), "ab_error_of_grey": colors.norm(dim=-1)}
        if self.bins is not None:
            values["accuracy"] = (required(predicted_bins) == self.bins.soft_targets(colors).indices[..., 0]).float()
        return {name: ((value * carries).sum(), carries.sum()) for name, value in values.items()}

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Colours told from patches' features.

        Args:
            tokens: (M, D).

        Returns:
            a and b (M, cells ** 2, 2), and the most probable bins (M, cells ** 2), null in the mode `regression`.
        """
        colors, bins = [], []
        for part in tokens.split(PATCHES_AT_ONCE):
            outputs = at_least_float32(required(self.head)(part)).unflatten(-1, (self.cells**2, -1))
            if self.bins is None:
                colors.append(outputs * LIMIT)
            else:
                colors.append(self.bins.annealed_mean(outputs, self.temperature))
                bins.append(outputs.argmax(dim=-1))
        return torch.cat(colors), torch.cat(bins) if bins else None

    # -- costs and pictures

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """Of telling always how often each colour occurs, and for distances grey, by the latest evaluation or else by
        the measured pictures. Known once these are measured.
        """
        grey = frequencies.statistics.get("ab_error_of_grey")
        return self._chance | ({} if grey is None or not self._chance else {"ab_error": grey})

    def pass_shape(self, encoder: "VisionEncoder", samples: int, sequence_length: int) -> tuple[int, int]:
        """Every picture once, all its patches."""
        return samples, encoder.prefix_tokens + encoder.patches

    def forward_flops(self, encoder: "VisionEncoder", samples: int, sequence_length: int) -> float:
        """Operations of the linear layer, at the cells that enter the loss."""
        share = 1.0 if self.bins is None else max(1, round(self.cell_share * encoder.patches)) / encoder.patches
        return 2.0 * samples * encoder.patches * share * encoder.width * required(self.head).out_features

    @torch.no_grad()
    def examples(
        self,
        encoder: "VisionEncoder",
        batch: Batch,
        vocabulary: Vocabulary | None,
        generator: torch.Generator,
        count: int = 8,
    ) -> "Image":
        """Each picture as it was shown, as it was told and as it is; two of them side by side."""
        images = batch["images"][:count]
        lightness, colors = lightness_and_colors(images, self.patch_size, self.cells)
        tokens = encoder.patch_tokens(encoder.forward_features(encoder.normalize(lightness.expand(-1, 3, -1, -1))))
        predicted = self.decode(tokens.flatten(0, 1))[0].view_as(colors)
        grey = torch.zeros_like(colors)
        pictures = [*zip(paint(lightness, grey), paint(lightness, predicted), images, strict=True)]
        captions: list[list[Caption | str | None]] = []
        for grey_error, error in zip(mean_distances(grey, colors), mean_distances(predicted, colors), strict=True):
            captions.append([f"off by {grey_error:.0f}", Caption(f"off by {error:.0f}", error < grey_error), None])
        pairs = range(0, len(pictures), 2)
        return grid(
            [[one for row in pictures[start : start + 2] for one in row] for start in pairs],
            [[one for row in captions[start : start + 2] for one in row] for start in pairs],
            ["shown", "predicted", "true"] * min(2, len(pictures)),
        )

    @torch.no_grad()
    def shortcuts(
        self, encoder: "VisionEncoder", batch: Batch, generator: torch.Generator | None
    ) -> dict[str, Shortcut]:
        """What should not tell a cell's bin: `positions_only`, its place, and `input_channels`, colours left over.

        Classes are the most frequent bins and all others as one. Places do tell a little where pictures have their sky
        above.
        """
        if self.bins is None:
            return {}
        from lit_pretrain.backbone.patch_embeddings import sincos_positions

        encoder_pass = self.make_pass(batch, encoder, generator)
        colors, seen = encoder_pass.targets["colors"], encoder_pass.inputs["images"] * encoder.std + encoder.mean
        samples, cells, side = len(colors), colors.shape[1] * colors.shape[2], seen.shape[-1]
        drawn = torch.randint(0, cells, (samples, CHECKED_CELLS), generator=generator, device=colors.device)
        bins = self.bins.soft_targets(colors.flatten(1, 2)).indices[..., 0].gather(1, drawn).flatten()
        # An answer that is not among the frequent bins has the first match in the last place.
        frequent = self.bins.prior.topk(CHECKED_CLASSES - 1).indices
        matches = functional.pad(bins[:, None] == frequent, (0, 1), value=True)
        labels = matches.int().argmax(dim=1)

        def at_drawn(values: Tensor) -> Tensor:
            """Means of (B, F, S, S) over the drawn cells, (B * CHECKED_CELLS, F)."""
            means = cell_means(values, self.patch_size, self.cells).flatten(1, 2)
            return means.gather(1, drawn[..., None].expand(-1, -1, means.shape[-1])).flatten(0, 1)

        places = sincos_positions((side, side), POSITION_WIDTH, seen.device).mT.view(1, -1, side, side)
        # Differences of less than a fourth of a step of 8 bits are rounding.
        differences = (seen.diff(dim=1) * 1024).round() / 1024
        return {
            "positions_only": Shortcut(at_drawn(places.expand(samples, -1, -1, -1)), labels, CHECKED_CLASSES),
            "input_channels": Shortcut(at_drawn(differences), labels, CHECKED_CLASSES),
        }


def mean_distances(first: Tensor, second: Tensor) -> list[float]:
    """Mean distance of the colours (B, N, cells ** 2, 2) of each picture, in units of Lab."""
    return (first - second).norm(dim=-1).mean(dim=(1, 2)).tolist()
