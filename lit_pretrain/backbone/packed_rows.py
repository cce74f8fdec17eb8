"""Rows that hold several documents one after the other, none of which sees another.

So no position is padding (Krell et al. 2021, arXiv:2107.02027). What a document's tokens become does not depend on what
else is in the row: its positions begin at 0, and attention is a block on the diagonal.

On CUDA devices in half precision, attention runs over documents of any length at once
(`torch.nn.attention.varlen`, whose kernel is FlashAttention's, Dao 2023, arXiv:2307.08691), and nothing is computed
between documents. Elsewhere it is masked.
"""

import inspect
from functools import cache
from typing import NamedTuple, cast

import torch
from torch import Tensor


class DocumentBounds(NamedTuple):
    """Where the documents of a batch begin, its rows laid end to end.

    Attributes:
        starts: (documents + 1,) int32 numbers of tokens, from 0 to all; padding counts as a document.
        longest: No document has more tokens.
    """

    starts: Tensor
    longest: int


def places_within(documents: Tensor) -> Tensor:
    """Each token's position in its document, from 0.

    Args:
        documents: (B, N) integers, the document that a token belongs to, equal for neighbours of one document alone.

    Returns:
        (B, N) integers.
    """
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values


def mask_between(documents: Tensor, causal: bool) -> Tensor:
    """(B, 1, N, N) booleans, true where a token attends to another: one of the same document, and not a later one if
    `causal`. Padding attends to padding, so that no row is empty.
    """
    same = documents[:, :, None] == documents[:, None, :]
    return (same.tril() if causal else same)[:, None]


def bounds_of(documents: Tensor) -> DocumentBounds:
    """Bounds of (B, N) documents; it waits for the device, which has to count them."""
    starts = torch.nonzero(places_within(documents).flatten() == 0).flatten()
    everything = starts.new_full((1,), documents.numel())
    return DocumentBounds(torch.cat([starts, everything]).to(torch.int32), documents.shape[1])


@cache
def has_variable_lengths() -> bool:
    """Whether this torch has attention over documents of any length, with windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


def serves_variable_lengths(device: torch.device, dtype: torch.dtype, dropout: float) -> bool:
    """Whether attention of such tensors can run over documents of any length."""
    half = dtype in (torch.float16, torch.bfloat16)
    return device.type == "cuda" and half and not dropout and has_variable_lengths()


def attend_within(
    query: Tensor, key: Tensor, value: Tensor, bounds: DocumentBounds, causal: bool, window: int | None
) -> Tensor:
    """Attention within documents, on a CUDA device in half precision.

    Args:
        query: (B, H, N, d).
        key: (B, H, N, d).
        value: (B, H, N, d).
        bounds: Of the B rows' documents.
        causal: Whether a token sees only itself and earlier ones.
        window: How far to either side a token sees; null for all of its document.

    Returns:
        (B, H, N, d).
    """
    from torch.nn.attention.varlen import varlen_attn

    queries, keys, values = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    reach = -1 if window is None else window
    mixed = cast(
        Tensor,
        varlen_attn(
            queries,
            keys,
            values,
            bounds.starts,
            bounds.starts,
            bounds.longest,
            bounds.longest,
            window_size=(reach, 0 if causal else reach),
        ),
    )
    return mixed.unflatten(0, (query.shape[0], query.shape[2])).transpose(1, 2)
