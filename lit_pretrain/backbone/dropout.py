"""Dropout (Srivastava et al. 2014, JMLR 15:1929) that draws fewer random bits on a CPU.

torch's draws a uniform number for each element there, one thread after the other, and that is a quarter of a small
BERT's fine-tuning step. Sixteen bits say as well whether an element stays: probabilities are rounded to multiples of
2**-16, and what stays is scaled by the rounded one, so that the mean is exact.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

# Values of sixteen bits.
LEVELS = 2**16


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
    noise = torch.empty_like(values, memory_format=torch.contiguous_format)
    torch.ge(bits.view(values.shape), dropped - LEVELS // 2, out=noise)
    return values * noise.mul_(LEVELS / (LEVELS - dropped))


class Dropout(nn.Dropout):
    """As torch's, by `apply_dropout`."""

    def forward(self, values: Tensor) -> Tensor:
        """The same shape; in evaluation the values themselves."""
        return apply_dropout(values, self.p) if self.training and self.p else values
