"""The chunked cross-entropy against PyTorch's, values and gradients, and its samples' distribution."""

import pytest
import torch

from lit_pretrain.objectives import linear_cross_entropy as module
from lit_pretrain.objectives.linear_cross_entropy import linear_cross_entropy


@pytest.mark.parametrize("chunk_rows", [1, 3, 1000])
@pytest.mark.parametrize("with_bias", [True, False])
def test_value_and_gradients_equal_pytorchs(chunk_rows: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", chunk_rows * 13)
    torch.manual_seed(0)
    features, weight = torch.randn(10, 8, requires_grad=True), torch.randn(13, 8, requires_grad=True)
    bias = torch.randn(13, requires_grad=True) if with_bias else None
    targets, row_weights = torch.randint(0, 13, (10,)), torch.tensor([1.0, 0, 1, 1, 2, 1, 0, 1, 1, 0.5])
    leaves = [leaf for leaf in (features, weight, bias) if leaf is not None]
    result = linear_cross_entropy(features, weight, bias, targets, row_weights)
    ours = torch.autograd.grad(3.0 * result.total, leaves)
    logits = torch.nn.functional.linear(features, weight, bias)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = (losses * row_weights).sum()
    torch.testing.assert_close(result.total, expected)
    torch.testing.assert_close(result.correct, ((logits.argmax(-1) == targets) * row_weights).sum())
    for one, other in zip(ours, torch.autograd.grad(3.0 * expected, leaves), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_rows", [3, 1000])
def test_soft_targets_equal_pytorchs(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", chunk_rows * 13)
    torch.manual_seed(0)
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((10, 8), (13, 8), (13,))]
    targets, shares = torch.rand(10, 13).topk(4).indices, torch.rand(10, 4).softmax(dim=1)
    row_weights = torch.rand(10)
    result = linear_cross_entropy(*leaves, targets, row_weights, target_shares=shares)
    ours = torch.autograd.grad(result.total, leaves)
    dense = torch.zeros(10, 13).scatter(1, targets, shares)
    losses = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*leaves), dense, reduction="none")
    torch.testing.assert_close(result.losses, losses.detach())
    assert float(result.correct) == 0.0
    torch.testing.assert_close(result.total, (losses * row_weights).sum())
    for one, other in zip(ours, torch.autograd.grad((losses * row_weights).sum(), leaves), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trained", [0, 1, 2])
def test_each_input_may_be_the_only_one_that_is_trained(trained: int) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((10, 8), (13, 8), (13,))]
    targets, ones = torch.randint(0, 13, (10,)), torch.ones(10)
    expected = torch.autograd.grad(linear_cross_entropy(*leaves, targets, ones).total, leaves)[trained]
    for place, one in enumerate(leaves):
        one.requires_grad_(place == trained)
    (found,) = torch.autograd.grad(linear_cross_entropy(*leaves, targets, ones).total, leaves[trained])
    torch.testing.assert_close(found, expected)
    with torch.inference_mode():
        assert not linear_cross_entropy(*leaves, targets, ones).total.requires_grad


def test_autocast_keeps_the_loss_in_float32() -> None:
    torch.manual_seed(0)
    features, weight = torch.randn(6, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    targets, ones = torch.randint(0, 20, (6,)), torch.ones(6)
    exact = linear_cross_entropy(features, weight, None, targets, ones).total
    with torch.autocast("cpu", torch.bfloat16):
        result = linear_cross_entropy(features, weight, None, targets, ones)
    assert result.total.dtype == torch.float32
    torch.testing.assert_close(result.total, exact, rtol=2e-2, atol=0.1)
    result.total.backward()
    assert features.grad.dtype == weight.grad.dtype == torch.float32


def test_no_rows_is_zero_not_nan() -> None:
    features, weight = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    total = linear_cross_entropy(features, weight, None, torch.zeros(4, dtype=torch.long), torch.zeros(4)).total
    total.backward()
    assert float(total.detach()) == 0.0 and not features.grad.any() and not weight.grad.any()


def test_samples_follow_the_distribution() -> None:
    torch.manual_seed(0)
    weight = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()[:, None]
    rows = 20_000
    uniform = torch.rand(rows)
    result = linear_cross_entropy(
        torch.ones(rows, 1), weight, None, torch.zeros(rows, dtype=torch.long), torch.ones(rows), uniform
    )
    shares = result.samples.bincount(minlength=4) / rows
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.012, rtol=0)
    edges = linear_cross_entropy(
        torch.ones(2, 1), weight, None, torch.zeros(2, dtype=torch.long), torch.ones(2), torch.tensor([0.0, 0.9999999])
    )
    assert edges.samples.tolist() == [0, 3]
