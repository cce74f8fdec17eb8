"""Frozen features of pictures at any depth of an encoder, for probes and neighbours.

The last block of a pretrained encoder serves its pretext task; a block in the middle often serves others better
(Zhang et al. 2016, arXiv:1611.09842, table 2; Doersch et al. 2015, arXiv:1505.05192), so features are taken at several.
"""

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from lit_pretrain.backbone.vision_encoder import VisionEncoder
from lit_pretrain.data.augmentation import middle
from lit_pretrain.errors import UserError


def probe_depths(depth: int, count: int = 3) -> list[int]:
    """Up to `count` depths at even distances, the last block being one of them, counted from 1.

    Args:
        depth: Blocks of the encoder.
        count: How many depths are wanted.
    """
    return sorted({max(1, round(depth * part / count)) for part in range(1, count + 1)})


@torch.no_grad()
def picture_features(
    encoder: VisionEncoder, images: numpy.ndarray | Tensor, depths: Sequence[int], batch_size: int = 256
) -> dict[int, Tensor]:
    """Mean over the patches after some blocks; the encoder is run as in evaluation and left as it was.

    Args:
        encoder: On any device.
        images: (N, 3, S, S) uint8; their middles are taken.
        depths: Blocks, counted from 1; the last one's features have gone through the final norm.
        batch_size: Pictures at a time.

    Returns:
        Depth -> (N, D) float32 on the CPU.

    Raises:
        UserError: If the encoder has no such block.
    """
    blocks = encoder.config.depth
    for depth in depths:
        if not 1 <= depth <= blocks:
            raise UserError(f"There is no block {depth} in an encoder of {blocks}: give depths from 1 to {blocks}.")
    training = encoder.training
    encoder.eval()
    device, found = encoder.mean.device, {depth: [] for depth in depths}
    for start in range(0, len(images), batch_size):
        part = torch.as_tensor(images[start : start + batch_size]).to(device)
        inputs = encoder.normalize(middle(part, encoder.image_size))
        outputs = encoder.forward_intermediates(inputs, [depth - 1 for depth in depths])
        for depth, tokens in zip(depths, outputs, strict=True):
            found[depth].append(encoder.patch_tokens(tokens).float().mean(dim=1).cpu())
    encoder.train(training)
    return {depth: torch.cat(parts) for depth, parts in found.items()}
