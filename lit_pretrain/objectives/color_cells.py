"""Lightness of a picture's pixels, and colours of its cells: the squares that a ViT's patches are parted into.

A patch's cells lie row by row, as the channels of a pixel shuffle do, so that a linear layer can predict all of them
from the patch's features.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from lit_pretrain.objectives.color_space import lab_to_srgb, srgb_to_lab

# A picture none of whose cells has an a or b beyond this teaches no colours (the threshold of Zhang et al. 2016).
COLORLESS = 5.0


def lightness_and_colors(images: Tensor, patch_size: int, cells: int) -> tuple[Tensor, Tensor]:
    """Part pictures into what is shown and what is asked.

    Args:
        images: (B, 3, H, W) sRGB in [0, 1].
        patch_size: Pixels of a patch's side.
        cells: Cells along it, a divisor.

    Returns:
        Lightness (B, 1, H, W) in [0, 1], and the cells' a and b (B, N, cells ** 2, 2).
    """
    lab = srgb_to_lab(images)
    return lab[:, :1] / 100, cell_means(lab[:, 1:], patch_size, cells)


def cell_means(values: Tensor, patch_size: int, cells: int) -> Tensor:
    """Means of (B, F, H, W) over each cell's pixels, (B, N, cells ** 2, F): patches, and cells in each, row by row."""
    means = functional.avg_pool2d(values, patch_size // cells)
    return functional.pixel_unshuffle(means, cells).unflatten(1, (-1, cells**2)).flatten(3).permute(0, 3, 2, 1)


def cell_map(colors: Tensor) -> Tensor:
    """The cells (B, N, cells ** 2, F) of square pictures at their places, (B, F, side, side)."""
    batch, patches, cells, features = colors.shape
    side = round(patches**0.5)
    channels = colors.permute(0, 3, 2, 1).reshape(batch, features * cells, side, side)
    return functional.pixel_shuffle(channels, round(cells**0.5))


def paint(lightness: Tensor, colors: Tensor) -> Tensor:
    """Lay cells' colours over square pictures, blended between the cells' middles.

    Args:
        lightness: (B, 1, S, S) in [0, 1].
        colors: (B, N, cells ** 2, 2), a and b.

    Returns:
        (B, 3, S, S) sRGB in [0, 1].
    """
    size = lightness.shape[2:]
    blended = functional.interpolate(cell_map(colors), size=size, mode="bilinear", align_corners=False)
    return lab_to_srgb(torch.cat([100 * lightness, blended], dim=1))


def has_colors(colors: Tensor) -> Tensor:
    """Whether any cell of pictures (B, N, cells ** 2, 2) is clearly coloured, (B,) booleans."""
    return (colors.abs() > COLORLESS).flatten(1).any(dim=1)
