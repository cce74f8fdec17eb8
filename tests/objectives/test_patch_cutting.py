"""Where nine patches lie, computed by hand; the promised gap; colours dropped; standardisation."""

import itertools

import pytest
import torch

from lit_pretrain.objectives.patch_cutting import PatchGrid, cut, drop_channels, drop_to_grey, standardize


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "settings, expected",
    [
        # 32 pixels: cells of 10, a pixel of gap and one of jitter leave 8.
        ((32, 4, 0.1, 0.1), (8, 1, 1)),
        # Cells of 74, 7 of gap and 7 of jitter leave 60: 48, and 12 more of gap, near to Doersch's 96 of 144.
        ((224, 16, 0.1, 0.1), (48, 19, 7)),
        ((36, 4, 0.0, 0.0), (12, 0, 0)),
        ((32, 4, 0.1, 0.1, 4), (4, 5, 1)),
        ((24, 4, 0.1, 0.1), (4, 3, 1)),
    ],
)
def test_patch_gap_and_jitter_by_hand(settings, expected) -> None:
    grid = PatchGrid.fitted(*settings)
    assert (grid.patch, grid.gap, grid.jitter) == expected


def test_what_does_not_fit_is_null() -> None:
    assert PatchGrid.fitted(16, 4, 0.1, 0.1) is None, "a cell of 5 holds no patch of 4, a gap and a jitter"
    assert PatchGrid.fitted(16, 4, 0.0, 0.1).patch == 4
    assert PatchGrid.fitted(32, 4, 0.1, 0.1, patch_pixels=12) is None


def test_corners_by_hand() -> None:
    corners = PatchGrid(image_size=32, patch=4, gap=6, jitter=0).corners(1, generator(), torch.device("cpu"))
    # 30 of 32 pixels are in cells, so these begin at 1; half of the gap of 6 lies before a patch.
    assert corners[0].tolist() == [[row, column] for row in (4, 14, 24) for column in (4, 14, 24)]
    drawn = PatchGrid(image_size=32, patch=4, gap=3, jitter=3).corners(500, generator(), torch.device("cpu"))
    assert drawn[:, 5, 0].unique().tolist() == [12, 13, 14, 15] and drawn[:, 5, 1].unique().tolist() == [22, 23, 24, 25]


@pytest.mark.parametrize("size, patch_size", [(32, 4), (36, 4), (64, 8), (96, 16), (224, 16)])
@pytest.mark.parametrize("gap, jitter", [(0.0, 0.0), (0.1, 0.1), (0.2, 0.05), (0.0, 0.3)])
def test_neighbours_never_come_nearer_than_the_gap_and_stay_inside(size, patch_size, gap, jitter) -> None:
    grid = PatchGrid.fitted(size, patch_size, gap, jitter)
    corners = grid.corners(2000, generator(), torch.device("cpu")).view(-1, 3, 3, 2)
    assert corners.min() >= 0 and int(corners.max()) + grid.patch <= size
    between_rows = corners[:, 1:, :, 0] - corners[:, :-1, :, 0] - grid.patch
    between_columns = corners[:, :, 1:, 1] - corners[:, :, :-1, 1] - grid.patch
    assert grid.gap >= round(gap * (size // 3)) and (gap == 0 or grid.gap >= 1)
    for free in (between_rows, between_columns):
        assert (int(free.min()), int(free.max())) == (grid.gap, grid.gap + 2 * grid.jitter)


def test_patches_are_cut_where_their_corners_say() -> None:
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    corners = torch.tensor([[[0, 0], [5, 2]], [[3, 4], [1, 5]]])
    patches = cut(images, corners, 3)
    assert patches.shape == (2, 2, 3, 3, 3)
    for picture, number in itertools.product(range(2), range(2)):
        row, column = corners[picture, number].tolist()
        assert torch.equal(patches[picture, number], images[picture, :, row : row + 3, column : column + 3])


def test_grey_by_hand_and_for_its_share_only() -> None:
    images = torch.rand(400, 3, 4, 4, generator=generator())
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(drop_to_grey(red, 1.0, generator()), torch.full((1, 3, 2, 2), 0.2989))
    assert torch.equal(drop_to_grey(images, 0.0, generator()), images)
    changed = (drop_to_grey(images, 0.66, generator()) != images).flatten(1).any(dim=1).float().mean()
    assert abs(float(changed) - 0.66) < 0.08


def test_one_channel_is_kept_and_the_others_become_faint_noise() -> None:
    images = torch.rand(300, 3, 8, 8, generator=generator())
    fill = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    dropped = drop_channels(images, 1.0, fill, generator())
    kept = (dropped == images).all(dim=(2, 3))
    assert kept.sum(dim=1).tolist() == [1] * 300 and kept.sum(dim=0).min() > 60
    noise = (dropped - fill)[~kept]
    # A uniform channel deviates by 1 / sqrt(12), the noise by a hundredth of it.
    assert float(noise.std()) == pytest.approx(12**-0.5 / 100, rel=0.1) and abs(float(noise.mean())) < 1e-4
    assert torch.equal(drop_channels(images, 0.0, fill, generator()), images)


def test_standardized_by_hand_and_an_even_patch_is_zeros() -> None:
    images = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).view(1, 1, 2, 2)
    torch.testing.assert_close(standardize(images), (images - 4) / 5**0.5)
    assert standardize(torch.full((1, 3, 4, 4), 0.3)).abs().max() < 1e-5
