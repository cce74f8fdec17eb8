"""Low-level traces by which a pretext task can be solved without seeing anything, as features for a small classifier.

The traces are those of Doersch et al. (2015, arXiv:1505.05192, section 3.1) and of cutting and compressing pictures.
Each feature is blind, as far as can be, to what a picture shows, so that accuracy above chance points at a leak. One
is not: the layout of colours is part of what is seen, but needs no shape to be seen, and tells what a model that
knows no more has learned.
"""

import torch
from torch import Tensor

LAYOUT_GRID = 4  # cells of a side of the layout of colours
COMPRESSION_BLOCK = 8  # pixels of a side of JPEG's blocks
# Two values that the same step of 8 bits would hold.
SAME = 0.5 / 255


def border_features(images: Tensor) -> Tensor:
    """Artificial margins and corners of (M, C, S, S) pictures in [0, 1]: padding, bars, corners of a rotation.

    A margin is a run of outermost lines each of which is of one colour, or the same as the line before it. Whole lines
    only, because single neighbouring pixels are often equal in a clear sky, which lies above.

    Returns:
        (M, 8): depth of the margin above, to the right, below and to the left, as shares of the side; then whether the
        triangle in each corner (clockwise from the upper left, an eighth of the side) is of one colour.
    """
    size = images.shape[-1]
    leg = max(2, size // 8)
    place = torch.arange(leg, device=images.device)
    triangle = place[:, None] + place < leg
    depths, corners = [], []
    for turns in range(4):
        # One quarter turn anticlockwise brings the right side up, two the lower one, three the left one.
        view = torch.rot90(images, turns, dims=(2, 3))
        even = ((view - view[..., :1]).abs() <= SAME).all(dim=(1, 3))
        repeated = (view.diff(dim=2).abs() <= SAME).all(dim=(1, 3))
        artificial = even | torch.cat([repeated[:, :1], repeated], dim=1)
        depths.append(artificial.long().cumprod(dim=1).sum(dim=1) / size)
        corner = view[:, :, :leg, :leg]
        corners.append((((corner - corner[..., :1, :1]).abs() <= SAME) | ~triangle).all(dim=(1, 2, 3)).float())
    return torch.stack(depths + corners, dim=-1)


def color_layout_features(images: Tensor) -> Tensor:
    """Where (M, C, S, S) pictures are bright and of which colour, at a glance: light comes from above.

    Returns:
        (M, C * 16): mean colour of each cell of a grid of 4 x 4.
    """
    return torch.nn.functional.adaptive_avg_pool2d(images, LAYOUT_GRID).flatten(1)


def compression_features(images: Tensor) -> Tensor:
    """Where the blocks of a JPEG file begin in (M, C, S, S) pictures: visible if all were cropped at the same phase.

    Finds blocks of 8 pixels, so only where pictures were not resized after they were stored. A step counts by what it
    has beyond the steps beside it, so that a picture that is busier below tells nothing.

    Returns:
        (M, 16): excess of the mean absolute step from each column to the next, averaged by their place modulo 8, over
        the mean step; then the same of rows. Zeros for pictures of fewer than four pixels.
    """
    features = []
    for axis in (3, 2):
        steps = images.diff(dim=axis).abs().mean(dim=(1, 5 - axis))
        excess = steps[:, 1:-1] - (steps[:, :-2] + steps[:, 2:]) / 2
        phases = [excess[:, phase::COMPRESSION_BLOCK].sum(dim=1) for phase in range(COMPRESSION_BLOCK)]
        lines = [max(1, len(range(phase, excess.shape[1], COMPRESSION_BLOCK))) for phase in range(COMPRESSION_BLOCK)]
        # Place 0 is the step from the first line to the second, which has no step before it.
        means = torch.stack([total / number for total, number in zip(phases, lines, strict=True)], dim=-1).roll(
            1, dims=1
        )
        features.append(means / steps.mean(dim=1, keepdim=True).clamp(min=1e-6))
    return torch.cat(features, dim=-1)


def continuity_features(centres: Tensor, neighbours: Tensor) -> Tensor:
    """Whether contours run on from one patch into the other, for pairs (..., C, s, s).

    Compared are the steps along the facing outermost lines. Brightness itself is left out, for it changes slowly and
    says where a neighbour belongs whatever the gap.

    Returns:
        (..., 4): cosine similarity of the steps if the neighbour lay above, below, to the left and to the right.
    """
    facing = [
        (centres[..., 0, :], neighbours[..., -1, :]),
        (centres[..., -1, :], neighbours[..., 0, :]),
        (centres[..., :, 0], neighbours[..., :, -1]),
        (centres[..., :, -1], neighbours[..., :, 0]),
    ]
    return torch.stack([similarity(edge.diff(dim=-1), opposite.diff(dim=-1)) for edge, opposite in facing], dim=-1)


def chroma_features(images: Tensor) -> Tensor:
    """How red and blue are displaced against green in (M, 3, s, s) images: the lens's chromatic aberration.

    The displacement grows from the picture's middle outwards and so tells where a patch was. Patches of fewer than four
    pixels hold no displacement, and their features are 0.

    Returns:
        (M, 12): cosine similarity of green's steps with those of red, then of blue, displaced by -1, 0 and 1 pixels
        along columns; then the same along rows.
    """
    features = []
    for axis in (-1, -2):
        steps = images.diff(dim=axis).transpose(axis, -1)
        length = steps.shape[-1]
        green = steps[:, 1, :, 1:-1]
        for channel in (0, 2):
            for displacement in (-1, 0, 1):
                other = steps[:, channel, :, 1 + displacement : max(0, length - 1 + displacement)]
                features.append(similarity(green, other))
    return torch.stack(features, dim=-1)


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarity (...) of steps (..., channels or lines, places), over the last two; 0 where nothing varies."""
    return torch.nn.functional.cosine_similarity(first.flatten(-2), second.flatten(-2), dim=-1)
