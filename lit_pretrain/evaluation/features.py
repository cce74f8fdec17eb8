"""Frozen features of pictures and texts at any depth of an encoder, for probes and neighbours.

The last block of a pretrained encoder serves its pretext task; a block in the middle often serves others better
(Zhang et al. 2016, arXiv:1611.09842, table 2; Doersch et al. 2015, arXiv:1505.05192), so features are taken at several.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.backbone.pooling import mean_pool
from lit_pretrain.errors import UserError

# Mean over patches or real tokens, the first token, or what the encoder's own `forward_head` makes of the last block.
FeaturePooling = Literal["mean", "cls", "encoder"]
TEXT_FIELDS = ("input_ids", "attention_mask", "token_type_ids", "padded")


def probe_depths(depth: int, count: int = 3) -> list[int]:
    """Up to `count` depths at even distances, the last block being one of them, counted from 1.

    Args:
        depth: Blocks of the encoder.
        count: How many depths are wanted.
    """
    return sorted({max(1, round(depth * part / count)) for part in range(1, count + 1)})


def check_depths(encoder: TextEncoder | VisionEncoder, depths: Sequence[int], pooling: FeaturePooling = "mean") -> None:
    """Refuse, in one sentence, features that an encoder does not have.

    Raises:
        UserError: If there is no such block, no class token, or no pooling of that block.
    """
    blocks = encoder.config.readable_layers
    for depth in depths:
        if not 1 <= depth <= blocks:
            if encoder.config.depth == 0:
                raise UserError(f"There is no block {depth} in an encoder of none: its embeddings are read as block 1.")
            raise UserError(f"There is no block {depth} in an encoder of {blocks}: give depths from 1 to {blocks}.")
    if pooling == "cls" and isinstance(encoder, VisionEncoder) and not encoder.class_token:
        raise UserError("The encoder has no class token, so there is no pooling 'cls' of it: take 'mean'.")
    if pooling == "encoder" and list(depths) != [blocks]:
        raise UserError(
            f"The encoder's own pooling is for its last block, {blocks}, only: take 'mean' or 'cls' for the others."
        )


@torch.no_grad()
def features_of_batches(
    encoder: TextEncoder | VisionEncoder,
    batches: Iterable[Mapping[str, Tensor]],
    depths: Sequence[int],
    pooling: FeaturePooling = "mean",
    bf16: bool = False,
    causal: bool = False,
) -> dict[int, Tensor]:
    """One vector a sample after some blocks; the encoder is run as in evaluation and left as it was.

    Args:
        encoder: On any device.
        batches: With `images` (B, 3, S, S) uint8, whose middles are taken, or `input_ids` (B, N) and, if they are
            padded, `attention_mask`; what else they hold is left alone.
        depths: Blocks, counted from 1; the last one's features have gone through the final norm.
        pooling: How a sample's tokens become one vector.
        bf16: Whether matrices are multiplied in bf16.
        causal: Whether a text's tokens see only the ones before them, as in causal pretraining.

    Returns:
        Depth -> (N, D) float32 on the CPU, in the order of the batches.

    Raises:
        UserError: If the encoder has no such block or pooling.
    """
    check_depths(encoder, depths, pooling)
    training, device = encoder.training, next(encoder.parameters()).device
    found: dict[int, list[Tensor]] = {depth: [] for depth in depths}
    encoder.eval()
    try:
        for batch in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                for depth, features in zip(depths, _features(encoder, batch, depths, pooling, causal), strict=True):
                    found[depth].append(features.float().cpu())
    finally:
        encoder.train(training)
    return {depth: torch.cat(parts) if parts else torch.empty(0, encoder.width) for depth, parts in found.items()}


def _features(
    encoder: TextEncoder | VisionEncoder,
    batch: Mapping[str, Tensor],
    depths: Sequence[int],
    pooling: FeaturePooling,
    causal: bool,
) -> Iterator[Tensor]:
    """(B, D) of one batch for every depth."""
    device, indices = next(encoder.parameters()).device, [depth - 1 for depth in depths]
    if isinstance(encoder, VisionEncoder):
        mask = None
        inputs = encoder.normalize(encoder.frame(batch["images"].to(device)))
        outputs = encoder.forward_intermediates(inputs, indices)
    else:
        inputs = move_data_to_device({name: batch[name] for name in TEXT_FIELDS if name in batch}, device)
        mask = inputs.get("attention_mask")
        outputs = encoder.forward_intermediates(indices=indices, causal=causal, **inputs)
    for tokens in outputs:
        if pooling == "encoder":
            yield encoder.forward_head(tokens, mask)
        elif pooling == "cls":
            yield tokens[:, 0]
        elif isinstance(encoder, VisionEncoder):
            yield encoder.patch_tokens(tokens).float().mean(dim=1)
        else:
            yield mean_pool(tokens.float(), mask)
