"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864): positions as rotations of queries and keys.

The rotation is computed by the encoder, which knows what a position is, and handed to the modality-blind Transformer.
"""

import torch
from torch import Tensor

# Cosines and sines of the angles, each (N, head width / 2), or (B, 1, N, head width / 2) where texts differ in them.
Rotation = tuple[Tensor, Tensor]


def rotation_for(positions: Tensor, head_width: int, base: float = 10_000.0) -> Rotation:
    """Cosines and sines for 1-d positions.

    Args:
        positions: (N,) positions of the tokens.
        head_width: Features of one attention head; even.
        base: Period of the slowest rotation, in positions, divided by 2 pi.

    Returns:
        Two float32 tensors of shape (N, head_width / 2).
    """
    exponents = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width
    angles = positions.to(torch.float32)[:, None] * (base**-exponents)[None, :]
    return angles.cos(), angles.sin()


def rotate(features: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (feature i, feature i + head width / 2) by its position's angle.

    Args:
        features: (B, heads, N, head width) queries or keys.
        rotation: From `rotation_for`, for the same N.
    """
    cosine, sine = (part.to(features.dtype) for part in rotation)
    first, second = features.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
