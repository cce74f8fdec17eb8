"""Lab's colour plane cut into bins, so that colours can be predicted as classes (Zhang et al. 2016, arXiv:1603.08511).

A bin is a point of a square grid over a and b, 10 units apart. Those are kept that are the nearest one of some 8-bit
sRGB colour: 261. The paper's 313 come in a file of the authors whose rule they do not give; other simple rules yield
222 (the middle of a cell can be shown) to 306.

A colour's target is spread over its 5 nearest bins by a Gaussian of sigma 5 (so the paper; the authors' code takes 10
bins). Most of what photographs show is nearly grey, so bins are weighted against their frequency in the data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lit_pretrain.backbone.float32 import Float32State, at_least_float32
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.color_space import srgb_to_lab

# No sRGB colour's a or b is larger.
LIMIT = 110
SIDE = 2 * LIMIT + 1
# Bins of sides 10, 5 and 2 are 261, 969 and 5,766; smaller ones would be no classes any more.
SMALLEST_BIN, LARGEST_BIN = 2, 40


@dataclass
class SoftTargets:
    """Distributions over few bins.

    Attributes:
        indices: (..., K) bins, the nearest one first.
        probabilities: (..., K), falling, of sum 1.
    """

    indices: Tensor
    probabilities: Tensor


class ColorBins(Float32State):
    """Bins of the colour plane, how frequent they are in the data, and what each weighs.

    Args:
        bin_size: Distance of neighbouring bins, in units of Lab.
        neighbors: Bins over which a colour's target is spread.
        sigma: Standard deviation of that spread, and of the smoothing of the frequencies, in units of Lab.
        rebalancing: Share of the frequencies in what the weights are inverse to; the rest is uniform. 0 weighs all bins
            alike, 1 by their inverse frequency. The paper's lambda is 1 minus this, and 0.5 as well.
    """

    centers: Tensor
    prior: Tensor
    weights: Tensor
    candidates: Tensor

    def __init__(self, bin_size: int = 10, neighbors: int = 5, sigma: float = 5.0, rebalancing: float = 0.5) -> None:
        super().__init__()
        self.neighbors = neighbors
        self.sigma = sigma
        self.rebalancing = rebalancing
        centers = bins_in_gamut(bin_size).clone()  # the original is kept for others
        if not 1 <= neighbors <= len(centers):
            raise UserError(f"Colorization.neighbors is {neighbors}: give 1 to {len(centers)}, the number of bins.")
        self.register_buffer("centers", centers)
        self.register_buffer("prior", torch.full_like(centers[:, 0], 1 / len(centers)))
        self.register_buffer("weights", torch.ones_like(centers[:, 0]))
        self.register_buffer("candidates", candidate_bins(bin_size, neighbors).clone(), persistent=False)

    def __len__(self) -> int:
        """Number of bins, Q."""
        return len(self.centers)

    def soft_targets(self, colors: Tensor) -> SoftTargets:
        """Spread colours over their nearest bins.

        The distances to the few candidates of a colour's place are computed, not those to all bins, which takes an
        eighth of the time and gives the same.

        Args:
            colors: (..., 2) float, a and b.
        """
        places = (colors + LIMIT).round().long().clamp(0, SIDE - 1)
        candidates = self.candidates[places[..., 0] * SIDE + places[..., 1]].long()
        first, second = self.centers.unbind(dim=1)
        distances = (first[candidates] - colors[..., :1]).square_()
        distances += (second[candidates] - colors[..., 1:]).square_()
        nearest = distances.topk(self.neighbors, largest=False)
        probabilities = (nearest.values / (-2 * self.sigma**2)).softmax(dim=-1)
        return SoftTargets(candidates.gather(-1, nearest.indices), probabilities)

    def annealed_mean(self, logits: Tensor, temperature: float) -> Tensor:
        """One colour (..., 2) from logits (..., Q): the mean under the distribution sharpened by the temperature.

        At 1 it is the mean, which is dull; towards 0 it is the most probable bin, which jumps from place to place.
        """
        with torch.autocast(logits.device.type, enabled=False):
            return torch.softmax(at_least_float32(logits) / temperature, dim=-1).to(self.centers.dtype) @ self.centers

    @torch.no_grad()
    def measure(self, colors: Tensor) -> None:
        """Set the bins' frequencies from colours (M, 2), smoothed by a Gaussian, and the weights from these."""
        nearest = self.soft_targets(colors).indices[:, 0]
        counts = torch.bincount(nearest, minlength=len(self)).double()
        centers = self.centers.double()
        distances = (centers[:, None] - centers).square().sum(dim=-1)
        smoothing = torch.softmax(distances / (-2 * self.sigma**2), dim=1)
        prior = (counts / counts.sum()) @ smoothing
        weights = 1 / (self.rebalancing * prior + (1 - self.rebalancing) / len(self))
        self.prior.copy_(prior)
        self.weights.copy_(weights / (prior * weights).sum())


@cache
def bins_in_gamut(bin_size: int) -> Tensor:
    """Grid points (Q, 2) that are the nearest one of some 8-bit sRGB colour, ordered by a, then b; on the CPU.

    A colour that grows lighter or darker with a and b kept reaches the surface of the RGB cube, so the six faces have
    all pairs of a and b that there are.

    Raises:
        UserError: If the bins would be too small or too large.
    """
    if not SMALLEST_BIN <= bin_size <= LARGEST_BIN:
        raise UserError(f"Colorization.bin_size is {bin_size}: give {SMALLEST_BIN} to {LARGEST_BIN} units of Lab.")
    with torch.device("cpu"):
        values = torch.arange(256, dtype=torch.float64) / 255
        first, second = torch.meshgrid(values, values, indexing="ij")
        faces = []
        for axis in range(3):
            for end in (0.0, 1.0):
                channels = [first, second]
                channels.insert(axis, torch.full_like(first, end))
                faces.append(torch.stack(channels))
        places = (srgb_to_lab(torch.stack(faces))[:, 1:] / bin_size).round().long() + LIMIT
        in_gamut = torch.bincount((places[:, 0] * SIDE + places[:, 1]).flatten(), minlength=SIDE**2) > 0
        grid = torch.arange(-LIMIT, LIMIT + 1, dtype=torch.float32) * bin_size
        return torch.cartesian_prod(grid, grid)[in_gamut]


@cache
def candidate_bins(bin_size: int, neighbors: int) -> Tensor:
    """The bins (SIDE ** 2, C) that may be among the nearest ones of the colours around each place of a grid of 1 unit.

    A colour is at most half a diagonal from its place. By going there each distance changes by that much at most, so
    no bin can enter the nearest ones whose distance exceeds theirs by more than a diagonal.
    """
    centers = bins_in_gamut(bin_size)
    with torch.device("cpu"):
        grid = torch.arange(-LIMIT, LIMIT + 1, dtype=torch.float32)
        places = torch.cartesian_prod(grid, grid)

        def distances() -> Iterator[Tensor]:
            for part in places.split(2**22 // len(centers)):
                yield torch.cdist(part, centers, compute_mode="donot_use_mm_for_euclid_dist")

        margin = 2**0.5 + 1e-3
        count = max(
            int((distance <= distance.topk(neighbors, largest=False).values[:, -1:] + margin).sum(dim=1).max())
            for distance in distances()
        )
        # 16 bits would do, but NCCL cannot send them, and DDP sends every buffer.
        return torch.cat([distance.topk(count, largest=False).indices.int() for distance in distances()])
