"""What processes that train together hold, put together so that gradients find their way back to where it came from.

A contrastive loss compares a sample with those of all processes. Each process takes the loss of its own rows; a
sample's gradient is the sum of what all processes' rows say about it, which the backward pass adds up. The processes'
gradients are averaged afterwards (DDP), and so the result is that of one process with the whole batch, with no factor
to correct.
"""

from typing import Any

import torch
from torch import Tensor, distributed


class Gather(torch.autograd.Function):
    """Rows of all processes, in the order of their ranks; its gradient is summed over the processes."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        """(B, ...) to (world size * B, ...)."""
        whole = rows.new_empty(distributed.get_world_size() * len(rows), *rows.shape[1:])
        distributed.all_gather_into_tensor(whole, rows.contiguous())
        return whole

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """This process's part of the sum over processes."""
        own = gradient.new_empty(len(gradient) // distributed.get_world_size(), *gradient.shape[1:])
        distributed.reduce_scatter_tensor(own, gradient.contiguous())
        return own


def together() -> bool:
    """Whether there are several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if together() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """(B, ...) of every process as (world size * B, ...), with its gradient if it has one; B is the same for all."""
    return Gather.apply(rows) if together() else rows


def first_row(rows: int) -> int:
    """Where this process's rows begin among those of all."""
    return distributed.get_rank() * rows if together() else 0
