"""What stays in float32 whatever the precision of a training is: losses, counts, and constants that are read exactly.

`bf16-true` brings a whole module to bf16, whose numbers have 8 bits: a sum of ones stops at 256, and a step of the
optimiser is lost on a temperature's logarithm. Weights and features may be so coarse; what is counted with them, and
what an input is normalised by, may not.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def at_least_float32(values: Tensor) -> Tensor:
    """Floating-point values of 16 bits as float32; anything else as it is."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


class Float32State(nn.Module):
    """A module whose own parameters and buffers, not its children's, stay in float32 where it is brought to less.

    They follow to another device, and to float64.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As nn.Module's, which `to`, `half`, `bfloat16` and the like call."""
        own = {**self._parameters, **self._buffers}
        exact = {name: at_least_float32(value.detach()) for name, value in own.items() if value is not None}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            if (moved := getattr(self, name)).dtype in (torch.bfloat16, torch.float16):
                moved.data = value.to(moved.device)
        return self
