"""From a sequence of tokens to one vector a sample.

`cls` and `mean` have no parameters; `pooler` is BERT's (dense, then tanh, on the first token: arXiv:1810.04805); `map`
is multi-head attention pooling with one learned query (Lee et al. 2019, arXiv:1810.00825) and a feed-forward, in timm's
form, as large ViTs (Zhai et al. 2022, arXiv:2106.04560) and SigLIP use it; `end_of_text` is CLIP's (Radford et al.
2021, arXiv:2103.00020): the features of the last real token, which alone has seen the whole text where attention is
causal.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.config import TransformerConfig
from lit_pretrain.backbone.transformer import make_activation, norm_of

Pooling = Literal["cls", "mean", "pooler", "map", "end_of_text"]


class BertPooler(nn.Module):
    """tanh(W x + b) of the first token, BERT's pooled output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, N, D) to (B, D)."""
        return torch.tanh(self.dense(tokens[:, 0]))


class AttentionPooling(nn.Module):
    """One learned query attends to all real tokens, then a feed-forward with a residual connection.

    Args:
        config: Of the Transformer before it, whose width, heads, feed-forward and norms it takes.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        # timm brings torchvision, 3 seconds of start-up that only those who pool in this way should pay.
        from timm.layers import AttentionPoolLatent

        # timm's annotations want classes and take whatever makes a module.
        layers: dict[str, Any] = {
            "norm_layer": lambda width, **_: norm_of(config, width),
            "act_layer": partial(make_activation, config.activation),
        }
        self.attention = AttentionPoolLatent(
            config.width,
            num_heads=config.resolved_heads,
            # timm rounds width * ratio down: half a feature more makes that exact.
            mlp_ratio=(config.resolved_feed_forward_width + 0.5) / config.width,
            **layers,
        )

    def no_weight_decay(self) -> set[str]:
        """The learned query, which is a vector however many dimensions it has."""
        return {"attention.latent"}

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map (B, N, D) to (B, D); `attention_mask` (B, N) is True where a token is real."""
        mask = None
        if attention_mask is not None:
            real = attention_mask.to(torch.bool)
            mask = (real | ~real.any(dim=1, keepdim=True))[:, None, None, :]
        return self.attention(tokens, mask)


def mean_pool(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mean of (B, N, D) over the real tokens, (B, D); zeros for a row without any."""
    if attention_mask is None:
        return tokens.mean(dim=1)
    weights = attention_mask.to(tokens.dtype)
    # Not in 16 bits, which cannot count beyond 256 (bf16).
    counts = attention_mask.sum(dim=1, keepdim=True, dtype=torch.float32).clamp(min=1)
    if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
        # As a product it reads the tokens once and writes no weighted copy of them.
        with torch.autocast("cpu", enabled=False):
            total = torch.bmm(weights[:, None], tokens)[:, 0]
    else:
        total = (tokens * weights[..., None]).sum(dim=1)
    return (total / counts).to(tokens.dtype)


def last_token(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Features (B, D) of the last real token of each row of (B, N, D); of the first for a row without any."""
    if attention_mask is None:
        return tokens[:, -1]
    places = torch.arange(tokens.shape[1], device=tokens.device)
    last = (attention_mask.to(torch.bool) * places).argmax(dim=1)
    return tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[2]))[:, 0]


def up_to_end_of_text(input_ids: Tensor) -> Tensor:
    """(B, N) True up to the first token of a row's highest id, which in CLIP's vocabulary ends a text."""
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    return places <= input_ids.argmax(dim=1, keepdim=True)
