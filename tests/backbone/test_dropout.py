"""Dropout: how much is dropped, the mean, gradients, and where torch's own does it."""

import pytest
import torch
from torch.nn import functional

from lit_pretrain.backbone import dropout
from lit_pretrain.backbone.dropout import Dropout, apply_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.997])
def test_elements_are_dropped_alike_everywhere_and_the_mean_stays(dtype, probability):
    torch.manual_seed(0)
    # Not a multiple of four, and not contiguous.
    values = torch.ones(101, 1999, dtype=dtype).T.requires_grad_()
    output = apply_dropout(values, probability)
    dropped = output.detach()
    kept = dropped != 0
    deviation = (probability * (1 - probability)) ** 0.5
    for part in (kept, kept[:, ::4], kept[:, 1::4], kept[:, 3::4], kept[:4], kept[1900:]):
        assert abs(float(part.double().mean()) - (1 - probability)) < 5 * deviation / part.numel() ** 0.5
    # Neighbours, which one draw decides about, know nothing of each other.
    left, right = kept.T.flatten()[:-1].double(), kept.T.flatten()[1:].double()
    assert abs(float(torch.corrcoef(torch.stack([left, right]))[0, 1])) < 5 / len(left) ** 0.5
    scales = dropped[kept].unique()
    assert len(scales) == 1 and float(scales) == pytest.approx(1 / (1 - probability), rel=5e-3)
    if dtype == torch.float64:
        # Of the multiple of 2**-16 that is nearest.
        share = round(probability * 65536) / 65536
        assert float(scales) == pytest.approx(1 / (1 - share), rel=1e-12)
    output.sum().backward()
    assert torch.equal(values.grad, dropped)


def test_it_is_drawn_from_the_generator_of_torch():
    values = torch.randn(7, 33)
    torch.manual_seed(1)
    first, second = apply_dropout(values, 0.3), apply_dropout(values, 0.3)
    torch.manual_seed(1)
    assert torch.equal(apply_dropout(values, 0.3), first) and not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_many_elements_the_same_and_a_byte_each_is_kept(dtype, monkeypatch):
    """As of few, in three pieces, the last one shorter; values and gradient are not contiguous."""
    gradient = torch.randn(1999, 3, 51).to(dtype).transpose(0, 2)
    found = []
    for many in (dropout.MANY, 1):
        monkeypatch.setattr(dropout, "MANY", many)
        values = torch.randn(51, 1999, 3, generator=torch.Generator().manual_seed(1)).to(dtype).transpose(1, 2)
        values.requires_grad_()
        saved = []
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one, sizes=saved: sizes.append(one.nbytes) or one, lambda one: one
        ):
            output = apply_dropout(values, 0.3)
        output.backward(gradient)
        found.append((output.detach(), values.grad))
        assert sum(saved) == values.numel() * (values.element_size() if many > 1 else 1)
    assert dropout.PIECE * 2 < values.numel() < dropout.PIECE * 3
    for few, many in zip(*found, strict=True):
        assert torch.equal(few, many)


def test_ends_and_other_places(monkeypatch):
    values = torch.randn(5, 3)
    module = Dropout(0.4)
    assert module.eval()(values) is values and Dropout(0.0)(values) is values
    assert not apply_dropout(values, 1.0).any() and apply_dropout(values[:0], 0.4).shape == (0, 3)
    torch.manual_seed(0)
    expected = functional.dropout(values, 0.4)
    torch.manual_seed(0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(module.train()(values), expected)
