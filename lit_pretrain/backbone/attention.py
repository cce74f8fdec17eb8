"""Attention: softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, arXiv:1706.03762), by the fastest way.

That is PyTorch's `scaled_dot_product_attention`, with one exception. On CPUs its fused kernel makes small bf16 products
that do not use the processor's bf16 instructions well: on 2 cores of an AMD EPYC with AVX512-BF16, forward and backward
of 32 x 4 heads x 128 tokens x 64 features take 27 ms in it and 7 ms as two batched matrix products with a softmax
between (torch 2.14). In fp32 both take the same, but with dropout, for which it holds all scores and draws as torch
does (`lit_pretrain.backbone.dropout`). Scores of (N, N) are small where a CPU trains at all.

Attention in a window (Beltagy et al. 2020, arXiv:2004.05150) is cut into blocks as wide as the window reaches to one
side: a block's tokens see no more than it and its two neighbours, so that the cost grows with N and not its square.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from lit_pretrain.backbone.dropout import apply_dropout

# Tokens up to which all scores may be held at once on a CPU.
LONGEST_WITH_SCORES = 1024


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """Mix values by the likeness of queries and keys.

    Args:
        query: (B, H, N, d).
        key: (B, H, N, d).
        value: (B, H, N, d).
        mask: Boolean, broadcastable to (B, H, N, N), True where attended; null for no mask.
        causal: Whether a token sees only itself and earlier ones; only read without a mask.
        dropout: Probability that a weight is dropped.

    Returns:
        (B, H, N, d).
    """
    length = query.shape[-2]
    slow_kernel = query.dtype == torch.bfloat16 or dropout > 0
    if query.device.type == "cpu" and slow_kernel and length <= LONGEST_WITH_SCORES:
        if causal and mask is None:
            mask = torch.ones(length, length, dtype=torch.bool).tril()
        return attend_with_scores(query, key, value, mask, dropout)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal and mask is None
    )


def worth_blocks(length: int, window: int) -> bool:
    """Whether attention in a window computes fewer scores in blocks than all of them at once, masked."""
    return length > 3 * window


def attend_locally(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int, dropout: float
) -> Tensor:
    """As `attend`, of consecutive tokens that see those at most `window` before and after them, in blocks.

    Args:
        query: (B, H, N, d).
        key: (B, H, N, d).
        value: (B, H, N, d).
        mask: (B, 1, 1, N) boolean, True where a token is real; null when all are. A token always sees itself.
        window: How far to either side.
        dropout: Probability that a weight is dropped.

    Returns:
        (B, H, N, d).
    """
    batch, heads, length, width = query.shape
    count = -(-length // window)
    filled = count * window - length

    def neighbours(tokens: Tensor) -> Tensor:
        """(B, H, N, d) as (B x blocks, H, 3 x window, d): each block with the one before and the one after it."""
        padded = functional.pad(tokens, (0, 0, window, window + filled))
        return padded.unfold(2, 3 * window, window).permute(0, 2, 1, 4, 3).flatten(0, 1)

    queries = functional.pad(query, (0, 0, 0, filled)).unflatten(2, (count, window)).transpose(1, 2).flatten(0, 1)
    places = torch.arange(window, device=query.device)[:, None] + window
    others = torch.arange(3 * window, device=query.device)
    near, itself = (others - places).abs() <= window, others == places
    real = torch.ones(1, 1, 1, length, dtype=torch.bool, device=query.device) if mask is None else mask
    seen = functional.pad(real, (window, window + filled)).unfold(3, 3 * window, window)
    # (B or 1, blocks, 1, window, 3 x window)
    seen = (seen.permute(0, 3, 1, 2, 4) & near) | itself
    seen = seen.expand(batch, *seen.shape[1:]).flatten(0, 1)
    mixed = attend(queries, neighbours(key), neighbours(value), seen, False, dropout)
    return mixed.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def attend_with_scores(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """As `attend`, with the (B, H, N, N) scores in memory."""
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-2, -1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=query.dtype)
    if dropout:
        weights = apply_dropout(weights, dropout)
    return torch.matmul(weights, value)
