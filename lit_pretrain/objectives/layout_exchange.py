"""Pictures whose layout of colours is another picture's: closes the shortcut that light comes from above.

Where a picture is bright tells which way up it is (Doersch et al. 2015, arXiv:1505.05192, call such traces trivial
solutions), at a glance and without an eye for shapes. Here the lowest frequencies of each picture, which are all that
such a glance sees, are exchanged for those of another picture, turned at random; the contours stay.
"""

import math

import torch
from torch import Tensor

# Cosines along a side that count as the layout: half a wave to two waves across the picture, and its mean. Grids of
# 4 x 4 cells see no more (`picture_shortcuts.color_layout_features`).
FREQUENCIES = 5


def low_frequencies(images: Tensor) -> Tensor:
    """The part of (B, C, S, S) pictures that their `FREQUENCIES` lowest cosines along each side span (DCT-II)."""
    size = images.shape[-1]
    place = torch.arange(size, device=images.device, dtype=images.dtype) + 0.5
    frequency = torch.arange(min(FREQUENCIES, size), device=images.device, dtype=images.dtype)
    cosines = torch.cos(math.pi / size * place[:, None] * frequency)
    basis = torch.nn.functional.normalize(cosines, dim=0)
    projection = basis @ basis.T
    return projection @ images @ projection


def exchange_layouts(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Give each picture the layout of another one of the batch, turned by a random number of quarter turns.

    Args:
        images: (B, C, S, S) floats in [0, 1].
        generator: Draws which picture and which turns.

    Returns:
        As `images`, cut off at 0 and 1.
    """
    device = images.device
    shift = torch.randint(1, max(2, len(images)), (1,), generator=generator, device=device)
    turns = torch.randint(4, (len(images),), generator=generator, device=device)
    rows = torch.arange(len(images), device=device)
    layouts = low_frequencies(images)
    others = layouts[(rows + shift) % len(images)]
    turned = torch.stack([torch.rot90(others, count, dims=(2, 3)) for count in range(4)])[turns, rows]
    return (images - layouts + turned).clamp(0.0, 1.0)
