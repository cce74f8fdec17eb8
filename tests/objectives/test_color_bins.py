"""Bins of the colour plane: which there are, neighbours by hand and by full search, weights, and the annealed mean."""

import math

import pytest
import torch

from lit_pretrain.errors import UserError
from lit_pretrain.objectives.color_bins import ColorBins, bins_in_gamut
from lit_pretrain.objectives.color_space import srgb_to_lab


def place(bins: ColorBins, *center: float) -> int:
    """The number of the bin at a and b."""
    (found,) = (bins.centers == torch.tensor(center)).all(dim=1).nonzero()
    return int(found)


def random_colors(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return srgb_to_lab(torch.rand(count, 3, 1, 1, generator=generator))[:, 1:, 0, 0]


def test_the_gamuts_bins() -> None:
    centers = bins_in_gamut(10)
    assert centers.shape == (261, 2) and centers.dtype == torch.float32
    found = {tuple(center) for center in centers.tolist()}
    assert len(found) == 261 and not any(number % 10 for center in found for number in center)
    # Nearest to the six corners of the cube, and to what lies beyond them.
    assert {(80, 70), (-90, 80), (80, -110), (-50, -10), (100, -60), (-20, 90), (0, 0)} <= found
    assert not {(90, 70), (-90, 90), (80, -120), (-50, -50), (0, 100)} & found
    # No colour's nearest grid point is missing, of all whose channels are multiples of 15 (of 255).
    steps = torch.arange(0, 256, 15, dtype=torch.float64) / 255
    colors = srgb_to_lab(torch.cartesian_prod(steps, steps, steps)[..., None, None])[:, 1:, 0, 0]
    assert {tuple(color) for color in ((colors / 10).round() * 10).tolist()} <= found
    assert (len(bins_in_gamut(20)), len(bins_in_gamut(5))) == (77, 969)


def test_neighbours_and_probabilities_by_hand() -> None:
    bins = ColorBins()
    targets = bins.soft_targets(torch.tensor([[1.0, 1.5]]))
    squared = {(0, 0): 3.25, (0, 10): 1 + 8.5**2, (10, 0): 81 + 2.25, (-10, 0): 121 + 2.25, (0, -10): 1 + 11.5**2}
    order = [(0, 0), (0, 10), (10, 0), (-10, 0), (0, -10)]
    assert targets.indices[0].tolist() == [place(bins, *center) for center in order]
    shares = torch.tensor([math.exp(-squared[center] / (2 * 5**2)) for center in order])
    torch.testing.assert_close(targets.probabilities[0], shares / shares.sum())


@pytest.mark.parametrize(("bin_size", "neighbors"), [(10, 5), (10, 10), (20, 5), (5, 3), (10, 1)])
def test_the_same_as_a_search_of_all_bins(bin_size: int, neighbors: int) -> None:
    bins, colors = ColorBins(bin_size, neighbors), random_colors(3000)
    targets = bins.soft_targets(colors.view(30, 100, 2))
    torch.testing.assert_close(targets.probabilities.sum(dim=-1), torch.ones(30, 100))
    squared = (colors[:, None] - bins.centers).square().sum(dim=-1)
    nearest, indices = squared.topk(neighbors, largest=False)
    assert torch.equal(targets.indices.view(3000, -1), indices)
    torch.testing.assert_close(targets.probabilities.view(3000, -1), torch.softmax(-nearest / 50, dim=1))


def test_frequencies_are_smoothed_and_the_weights_mean_is_one() -> None:
    bins = ColorBins()
    assert torch.equal(bins.weights, torch.ones(261)) and float(bins.prior.sum()) == pytest.approx(1)
    bins.measure(torch.zeros(50, 2))
    grey, beside, far = place(bins, 0, 0), place(bins, 10, 0), place(bins, 80, 70)
    assert float(bins.prior[beside] / bins.prior[grey]) == pytest.approx(math.exp(-100 / 50), rel=1e-4)
    assert float(bins.prior[far]) < 1e-20 and float(bins.prior.sum()) == pytest.approx(1)
    assert float((bins.prior * bins.weights).sum()) == pytest.approx(1)
    # 1 / (0.5 p + 0.5 / Q), up to a factor.
    expected = (0.5 / 261) / (0.5 * float(bins.prior[grey]) + 0.5 / 261)
    assert float(bins.weights[grey] / bins.weights[far]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("rebalancing", [0.0, 1.0])
def test_no_and_full_rebalancing(rebalancing: float) -> None:
    bins = ColorBins(20, rebalancing=rebalancing)
    bins.measure(random_colors(3000))
    product = bins.weights * bins.prior if rebalancing else bins.weights
    torch.testing.assert_close(product / product[0], torch.ones(77))


def test_annealed_mean() -> None:
    bins = ColorBins()
    logits = torch.full((1, 261), -torch.inf)
    shares = {place(bins, 0, 0): 0.5, place(bins, 40, 0): 0.3, place(bins, 0, 60): 0.2}
    for index, share in shares.items():
        logits[0, index] = math.log(share)
    torch.testing.assert_close(bins.annealed_mean(logits, 1.0), torch.tensor([[12.0, 12.0]]))
    torch.testing.assert_close(bins.annealed_mean(logits, 1e-3), torch.tensor([[0.0, 0.0]]))
    sharper = [share ** (1 / 0.38) for share in shares.values()]
    expected = torch.tensor([[40 * sharper[1], 60 * sharper[2]]]) / sum(sharper)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(bins.annealed_mean(logits, 0.38), expected)


def test_checkpoints_keep_what_was_measured() -> None:
    bins, other = ColorBins(), ColorBins()
    bins.measure(random_colors(100))
    assert set(bins.state_dict()) == {"centers", "prior", "weights"}
    other.load_state_dict(bins.state_dict())
    assert torch.equal(other.weights, bins.weights) and torch.equal(other.prior, bins.prior)
    assert torch.equal(ColorBins().weights, torch.ones(261)), "each has its own"


def test_bins_are_made_without_memory_for_weights_too() -> None:
    with torch.device("meta"):
        bins = ColorBins(20)
    assert torch.equal(bins.centers, bins_in_gamut(20))


@pytest.mark.parametrize(("arguments", "message"), [((1,), "bin_size is 1"), ((10, 300), "neighbors is 300")])
def test_what_cannot_be(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ColorBins(*arguments)
