"""Look-ups in tables whose gradient holds only the rows that were read.

The gradient of a look-up is as large as its table, though all but the rows of the batch are zero: of 200,000 n-grams a
batch reads some 10,000. For a table that `begin` has marked it is a sparse tensor of these rows, as of
`torch.nn.Embedding(sparse=True)`, but summed up where it is made: torch copies the gradient of every token first and
adds equal rows up afterwards.

Weight decay, which moves all rows at every step, is a factor of the whole table that each look-up multiplies with
(Bottou 2012, "Stochastic Gradient Descent Tricks", section 5.1); `settle` multiplies the table itself, before anything
else reads it.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

# A parameter's attribute with the factor that its numbers are still to be multiplied by.
DECAY = "pending_decay"


def begin(table: Tensor) -> None:
    """Have the gradient of a table (V, D) hold the rows that are read, until `end`."""
    if not has_sparse_gradient(table):
        setattr(table, DECAY, 1.0)


def end(table: Tensor) -> None:
    """Make a table an ordinary one again."""
    if has_sparse_gradient(table):
        settle(table)
        delattr(table, DECAY)


def has_sparse_gradient(table: Tensor) -> bool:
    """Whether `begin` was called."""
    return hasattr(table, DECAY)


def decay(table: Tensor, factor: float) -> None:
    """Multiply all of a table by a factor, without touching it."""
    pending = pending_decay(table) * factor
    setattr(table, DECAY, pending)
    # Before it is lost below what float32 tells from 0; a factor of 0 is one of them.
    if pending < 1e-6:
        settle(table)


def pending_decay(table: Tensor) -> float:
    """The factor that the table is still to be multiplied by; 1 of an ordinary one."""
    return cast(float, getattr(table, DECAY, 1.0))


@torch.no_grad()
def settle(table: Tensor) -> None:
    """Multiply a table by what is pending, for all that reads it in another way than by `look_up`."""
    if pending_decay(table) != 1.0:
        table.mul_(pending_decay(table))
        setattr(table, DECAY, 1.0)


def look_up(ids: Tensor, table: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of a table.

    Args:
        ids: (...) integers below V.
        table: (V, D).
        padding_idx: The row that has no gradient; null for none.

    Returns:
        (..., D).
    """
    if not has_sparse_gradient(table):
        return functional.embedding(ids, table, padding_idx)
    return cast(Tensor, _LookUp.apply(ids, table, padding_idx, pending_decay(table)))


class _LookUp(torch.autograd.Function):
    """See `look_up`; the gradient is that of the decayed table."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, padding_idx: int | None, factor: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding_idx = table.shape, padding_idx
        rows = functional.embedding(ids, table)
        return rows if factor == 1.0 else rows.mul_(factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:  # noqa: D102
        (ids,) = ctx.saved_tensors
        ordered, places = ids.flatten().sort()
        if ctx.padding_idx is not None:
            kept = ordered != ctx.padding_idx
            ordered, places = ordered[kept], places[kept]
        rows, counts = ordered.unique_consecutive(return_counts=True)
        return None, sparse_rows(rows, summed(gradient.flatten(0, -2), places, counts), ctx.shape), None, None


def summed(values: Tensor, places: Tensor, counts: Tensor) -> Tensor:
    """Sums of runs of rows.

    Args:
        values: (M, D).
        places: (N,) which rows, those of a run one after another.
        counts: (K,) rows of each run.

    Returns:
        (K, D).
    """
    if not len(counts):
        return values.new_zeros(0, values.shape[1])
    # A bag of embeddings is such a sum; `segment_reduce` is the same at a seventh of the speed on CPUs.
    return functional.embedding_bag(places, values, counts.cumsum(0) - counts, mode="sum")


def sparse_rows(rows: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """A sparse tensor of some rows of a table.

    Args:
        rows: (K,) ascending, each once.
        values: (K, D).
        shape: (V, D).
    """
    return torch.sparse_coo_tensor(rows[None], values, shape, is_coalesced=True, check_invariants=False)
