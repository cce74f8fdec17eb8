"""Dropout (Srivastava et al. 2014, JMLR 15:1929) that draws fewer random bits on a CPU.

torch's draws a uniform number for each element there, one thread after the other, and that is a quarter of a small
BERT's fine-tuning step. Sixteen bits say as well whether an element stays: probabilities are rounded to multiples of
2**-16, and what stays is scaled by the rounded one, so that the mean is exact.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# Values of sixteen bits.
LEVELS = 2**16
# Elements from which on a byte each is kept for the backward pass, and not a factor: less memory, a fifth slower.
MANY = 2**24
# Elements of a piece, whose factors stay in the processor's cache.
PIECE = 2**17


def apply_dropout(values: Tensor, probability: float) -> Tensor:
    """Set elements to zero at random, and scale the others so that the mean stays.

    Args:
        values: Of any shape.
        probability: Of an element to be set to zero.

    Returns:
        The same shape.
    """
    dropped = round(probability * LEVELS)
    if values.device.type != "cpu" or dropped == LEVELS or torch.compiler.is_compiling():
        return functional.dropout(values, probability)
    count = values.numel()
    # Four elements a draw.
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    least, scale = dropped - LEVELS // 2, LEVELS / (LEVELS - dropped)
    if count >= MANY:
        kept = bits.view(values.shape) >= least
        del bits
        return cast(Tensor, _Thinned.apply(values, kept, scale))
    noise = torch.empty_like(values, memory_format=torch.contiguous_format)
    torch.ge(bits.view(values.shape), least, out=noise)
    return values * noise.mul_(scale)


class _Thinned(torch.autograd.Function):
    """Values multiplied by a mask and a factor, of which only the mask is kept."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kept: Tensor, scale: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return thinned(values, kept, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: D102
        return thinned(gradient, ctx.saved_tensors[0], ctx.scale), None, None


def thinned(values: Tensor, kept: Tensor, scale: float) -> Tensor:
    """Values (...) times `scale` where `kept` (...) is True, 0 elsewhere, piece by piece."""
    flat, mask = values.reshape(-1), kept.view(-1)
    result = torch.empty_like(flat)
    factors = torch.empty(PIECE, dtype=flat.dtype, device=flat.device)
    for start in range(0, len(flat), PIECE):
        piece = slice(start, start + PIECE)
        some = factors[: len(mask[piece])].copy_(mask[piece]).mul_(scale)
        torch.mul(flat[piece], some, out=result[piece])
    return result.view(values.shape)


class Dropout(nn.Dropout):
    """As torch's, by `apply_dropout`."""

    def forward(self, values: Tensor) -> Tensor:
        """The same shape; in evaluation the values themselves."""
        return apply_dropout(values, self.p) if self.training and self.p else values
