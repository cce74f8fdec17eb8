"""Encoding a batch in chunks, so that its memory is a chunk's and its loss and gradients are the whole batch's.

A contrastive loss compares every sample with all others, so that gradients of parts of a batch do not add up to those
of the whole, as accumulation would need. GradCache (Gao et al. 2021, arXiv:2101.06983) encodes the batch without
keeping activations, takes the loss of all embeddings and its gradients by them, and encodes each chunk again to carry
these on to the weights. PyTorch's checkpointing of each chunk is that within one backward pass, with the draws of
dropout made alike both times; so mixed precision, clipping, schedules and DDP remain the trainer's.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def encode_in_chunks(
    encode: Callable[[dict[str, Tensor]], Tensor], inputs: dict[str, Tensor], chunk_size: int | None
) -> Tensor:
    """Embeddings of a batch.

    Args:
        encode: Makes (b, E) of some samples' inputs.
        inputs: (B, ...) each.
        chunk_size: Samples whose activations are held at a time; null holds those of all.

    Returns:
        (B, E).
    """
    samples = len(next(iter(inputs.values())))
    if chunk_size is None or chunk_size >= samples:
        return encode(inputs)
    parts = []
    for start in range(0, samples, chunk_size):
        part = {name: values[start : start + chunk_size] for name, values in inputs.items()}
        kept = torch.is_grad_enabled()
        parts.append(checkpoint(encode, part, use_reentrant=False) if kept else encode(part))
    return torch.cat(parts)
