"""Tensors of a public checkpoint, as a reader of `lit_pretrain.weights` returns them, into an encoder's own."""

import torch
from torch import nn

from lit_pretrain.errors import UserError
from lit_pretrain.weights.public import PublicWeights

# Names that a message lists of many.
MOST_NAMES = 6


@torch.no_grad()
def copy_public_weights(encoder: nn.Module, weights: PublicWeights) -> None:
    """Copy every tensor of a checkpoint into its counterpart.

    Args:
        encoder: Built from the checkpoint's settings.
        weights: The checkpoint. A convolution over patches may be its kernel there, and class token and positions may
            lack the dimension of a batch.

    Raises:
        UserError: If some are missing or unexpected, or one has another shape.
    """
    targets = {weights.format_name(name): target for name, target in encoder.state_dict().items()}
    missing = sorted(targets.keys() - weights.tensors.keys())
    unexpected = sorted(weights.tensors.keys() - targets.keys())
    if missing or unexpected:
        raise UserError(
            f"The weights of {weights.source} are not those of the encoder that they seem to be: missing "
            f"{', '.join(missing[:MOST_NAMES]) or 'none'}; unexpected {', '.join(unexpected[:MOST_NAMES]) or 'none'}."
        )
    for name, target in targets.items():
        value = weights.tensors[name]
        if target.ndim == 2 and value.ndim == 4:
            value = value.flatten(1)
        elif target.ndim == 3 and value.ndim < 3:
            value = value.reshape(1, -1, value.shape[-1])
        if value.shape != target.shape:
            raise UserError(
                f"{weights.source} has shape {tuple(value.shape)} where {tuple(target.shape)} is expected for "
                f"'{name}': the weights belong to another config."
            )
        target.copy_(value)
