"""Both ways to attend give the same, masks and causality included."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lit_pretrain.backbone.attention import attend, attend_with_scores


def inputs(dtype, seed=0, length=9):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, length, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def some_mask():
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[0, ..., 6:] = False
    return mask


@pytest.mark.parametrize("mask", [None, some_mask()], ids=["all", "padded"])
@pytest.mark.parametrize("causal", [False, True])
def test_scores_in_memory_equal_the_fused_kernel(mask, causal):
    if causal and mask is not None:
        mask = mask & torch.ones(9, 9, dtype=torch.bool).tril()
    query, key, value = inputs(torch.float64)
    expected = scaled_dot_product_attention(query, key, value, mask, is_causal=causal and mask is None)
    lower = torch.ones(9, 9, dtype=torch.bool).tril() if causal and mask is None else mask
    assert torch.allclose(attend_with_scores(query, key, value, lower, 0.0), expected, atol=1e-12)
    # With dropout `attend` takes that way too; so little of it is none.
    assert torch.allclose(attend(query, key, value, mask, causal, 1e-9), expected, atol=1e-12)
    # In bf16 on a CPU, `attend` takes that way, and its gradients are right to bf16's three digits.
    low = inputs(torch.bfloat16)
    mixed = attend(*low, mask, causal, 0.0)
    high = [one.detach().float().requires_grad_() for one in low]
    exact = scaled_dot_product_attention(*high, mask, is_causal=causal and mask is None)
    assert mixed.dtype == torch.bfloat16 and torch.allclose(mixed.float(), exact, atol=0.03)
    weight = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    (mixed.float() * weight).sum().backward()
    (exact * weight).sum().backward()
    for one, other in zip(low, high, strict=True):
        assert torch.allclose(one.grad.float(), other.grad, atol=0.12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dropout_drops_weights_and_keeps_the_mean(dtype):
    query, key, value = (torch.zeros(1, 1, 400, 4, dtype=dtype) for _ in range(3))
    torch.manual_seed(0)
    mixed = attend(query, key, value + 1, None, False, 0.5)
    assert mixed.float().std() > 0 and mixed.float().mean() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(attend(query, key, value + 1, None, False, 0.0), torch.ones_like(value))


def test_very_long_sequences_do_not_hold_all_scores(monkeypatch):
    from lit_pretrain.backbone import attention

    monkeypatch.setattr(attention, "LONGEST_WITH_SCORES", 8)
    monkeypatch.setattr(attention, "attend_with_scores", None)
    assert attend(*inputs(torch.bfloat16), None, False, 0.0).shape == (2, 3, 9, 8)
