"""Cross-entropy of a projection to the vocabulary without ever holding all logits.

At 30,522 word pieces the logits of a batch are the largest tensor of a small model's step, and writing, normalising and
differentiating them moves more memory than the rest together. Here rows are taken in chunks that stay in the cache: the
chunk's logits become log-probabilities, loss, gradient, and are gone (the idea of Wijmans et al. 2024,
arXiv:2411.09009, and of Hsu et al. 2024, arXiv:2410.10989). The gradients are made in the forward pass, because a mean
of losses only scales them afterwards.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_pretrain.required import required

# Logits of one chunk: 8 million floats (32 MB) on a CPU. Smaller chunks would stay in the cache, but each one also adds
# once to the whole weight gradient (V x D), and narrow matrix products are slow: 2**23 was the fastest of 2**19 to
# 2**25 for 608 rows at 8,192 and 30,522 word pieces and widths of 128 to 512.
CHUNK_ELEMENTS = {"cpu": 2**23}
ACCELERATOR_CHUNK_ELEMENTS = 2**27
SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny


@dataclass
class CrossEntropy:
    """Result of `linear_cross_entropy`.

    Attributes:
        total: Scalar sum of weighted losses, in nats, with gradients.
        correct: Scalar weighted number of rows whose target has the highest logit; 0 where targets are spread.
        losses: (M,) the rows' losses without their weights, without gradients.
        samples: (M,) draws from the rows' distributions, or null.
    """

    total: Tensor
    correct: Tensor
    losses: Tensor
    samples: Tensor | None


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weights: Tensor,
    uniform: Tensor | None = None,
    target_shares: Tensor | None = None,
) -> CrossEntropy:
    """Sum over rows of weight x cross-entropy of softmax(features weight^T + bias) with the target.

    Args:
        features: (M, D).
        weight: (V, D) vocabulary matrix.
        bias: (V,) or null.
        targets: (M,) integers below V, or (M, K) the classes that a row's target distribution is spread over.
        row_weights: (M,) weights; a row of weight 0 counts nowhere.
        uniform: (M,) draws from [0, 1): also sample a token from each row's distribution by inverting its cumulative
            sum; the samples carry no gradient.
        target_shares: (M, K) probabilities of those classes, of sum 1; null where each row has one class.

    Returns:
        Total, number of correct rows, losses and samples. Losses are computed in fp32 at least, whatever the precision
        of the products; a row's loss reads at most 87 nats, where fp32 has no smaller probability.
    """
    if torch.is_autocast_enabled(features.device.type):
        dtype = torch.get_autocast_dtype(features.device.type)
        features, weight = features.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    needs_gradient = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (features, weight, bias)
    )
    if target_shares is None:
        targets = targets[:, None]
        target_shares = torch.ones_like(targets, dtype=torch.float32)
    wide = torch.promote_types(weight.dtype, torch.float32)
    total, correct, losses, samples = _LinearCrossEntropy.apply(
        features, weight, bias, targets, target_shares.to(wide), row_weights.to(wide), uniform, needs_gradient
    )
    return CrossEntropy(total, correct, losses, samples if uniform is not None else None)


class _LinearCrossEntropy(torch.autograd.Function):
    """The chunks; see `linear_cross_entropy`."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shares: Tensor,
        row_weights: Tensor,
        uniform: Tensor | None,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, vocabulary = len(features), len(weight)
        elements = CHUNK_ELEMENTS.get(features.device.type, ACCELERATOR_CHUNK_ELEMENTS)
        chunk = max(1, elements // vocabulary)
        one_class = targets.shape[1] == 1
        wide = row_weights.dtype
        total = torch.zeros((), dtype=wide, device=features.device)
        correct = torch.zeros_like(total)
        losses = torch.empty(rows, dtype=wide, device=features.device)
        samples = torch.empty_like(targets[:, 0])
        feature_gradient = torch.empty_like(features) if needs_gradient else None
        weight_gradient = (
            torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device) if needs_gradient else None
        )
        bias_gradient = torch.zeros_like(bias, dtype=wide) if needs_gradient and bias is not None else None
        with torch.autocast(features.device.type, enabled=False):
            for start in range(0, rows, chunk):
                part = slice(start, min(start + chunk, rows))
                logits = torch.nn.functional.linear(features[part], weight, bias)
                # In place where the products are in fp32 already; from bf16 the sums need an fp32 copy.
                in_place = logits if logits.dtype == wide else None
                probabilities = torch.softmax(logits, dim=-1, dtype=wide, out=in_place)
                del logits
                chosen = probabilities.gather(1, targets[part])
                losses[part] = -(chosen.clamp(min=SMALLEST_PROBABILITY).log() * shares[part]).sum(dim=1)
                total += (losses[part] * row_weights[part]).sum()
                if one_class:
                    correct += ((chosen[:, 0] >= probabilities.amax(dim=-1)) * row_weights[part]).sum()
                if uniform is not None:
                    cumulative = probabilities.cumsum(dim=-1)
                    threshold = uniform[part, None] * cumulative[:, -1:]
                    sampled = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
                    samples[part] = sampled.clamp_(max=vocabulary - 1)
                if not needs_gradient:
                    continue
                probabilities.scatter_add_(1, targets[part], -shares[part])
                if bias_gradient is not None:
                    bias_gradient += row_weights[part] @ probabilities
                gradient = probabilities.to(weight.dtype)
                # The weights of the rows go to the features, which are far narrower than a vocabulary.
                weights = row_weights[part, None].to(weight.dtype)
                torch.mm(gradient, weight, out=required(feature_gradient)[part]).mul_(weights)
                required(weight_gradient).addmm_(gradient.T, features[part] * weights)
        ctx.save_for_backward(feature_gradient, weight_gradient, bias_gradient)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.mark_non_differentiable(correct, losses, samples)
        return total, correct, losses, samples

    @staticmethod
    def backward(  # noqa: D102
        ctx: Any, total_gradient: Tensor, _correct: Tensor, _losses: Tensor, _samples: Tensor
    ) -> tuple[Tensor | None, ...]:
        feature_gradient, weight_gradient, bias_gradient = ctx.saved_tensors
        scale = total_gradient
        if bias_gradient is not None:
            bias_gradient = (bias_gradient * scale).to(ctx.bias_dtype)
        return (
            feature_gradient * scale.to(feature_gradient.dtype),
            weight_gradient * scale.to(weight_gradient.dtype),
            bias_gradient,
            None,
            None,
            None,
            None,
            None,
        )
