"""From a sequence of tokens to one vector a sample.

`cls` and `mean` have no parameters; `pooler` is BERT's (dense, then tanh, on the first token: arXiv:1810.04805); `map`
is multi-head attention pooling with one learned query (Lee et al. 2019, arXiv:1810.00825), as ViTs use it.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["cls", "mean", "pooler", "map"]


class BertPooler(nn.Module):
    """tanh(W x + b) of the first token, BERT's pooled output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, N, D) to (B, D)."""
        return torch.tanh(self.dense(tokens[:, 0]))


class AttentionPooling(nn.Module):
    """One learned query attends to all real tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.query, std=0.02)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Map (B, N, D) to (B, D)."""
        padding = None
        if attention_mask is not None:
            real = attention_mask.to(torch.bool)
            padding = ~(real | ~real.any(dim=1, keepdim=True))
        query = self.query.expand(len(tokens), -1, -1)
        return self.attention(query, tokens, tokens, key_padding_mask=padding, need_weights=False)[0][:, 0]


def mean_pool(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mean of (B, N, D) over the real tokens, (B, D); zeros for a row without any."""
    if attention_mask is None:
        return tokens.mean(dim=1)
    weights = attention_mask.to(tokens.dtype)[..., None]
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
