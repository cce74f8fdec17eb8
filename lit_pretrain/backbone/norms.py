"""What normalises tokens: layer norm (Ba et al. 2016, arXiv:1607.06450) or RMS norm (Zhang and Sennrich 2019,
arXiv:1910.07467), which divides by the root mean square, subtracts no mean and has no bias.
"""

from typing import Literal

from torch import nn

NormKind = Literal["layer", "rms"]


def make_norm(width: int, epsilon: float, kind: NormKind = "layer", bias: bool = True) -> nn.Module:
    """A norm over the last dimension.

    Args:
        width: Features.
        epsilon: Added to the variance, or to the mean square.
        kind: `layer` or `rms`.
        bias: Whether a layer norm has a bias beside its gain.
    """
    return nn.RMSNorm(width, eps=epsilon) if kind == "rms" else nn.LayerNorm(width, eps=epsilon, bias=bias)
