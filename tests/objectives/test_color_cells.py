"""Cells of pictures painted by hand: where they lie, what colour they have, and back again."""

import pytest
import torch

from lit_pretrain.objectives.color_cells import cell_map, cell_means, has_colors, lightness_and_colors, paint

RED = (80.0925, 67.2032)


def test_what_is_asked_of_a_picture_painted_by_hand() -> None:
    images = torch.full((1, 3, 8, 8), 0.5)
    images[0, :, 4:6, 6:8] = torch.tensor([1.0, 0, 0])[:, None, None]  # the fourth patch's second cell
    images[0, 1:, 0, 0] = images[0, 1:, 1, 1] = 0.0
    images[0, 0, 0, 0] = images[0, 0, 1, 1] = 1.0  # half of the first patch's first cell
    lightness, colors = lightness_and_colors(images, patch_size=4, cells=2)
    expected = torch.zeros(1, 4, 4, 2)
    expected[0, 3, 1] = torch.tensor(RED)
    expected[0, 0, 0] = torch.tensor(RED) / 2
    torch.testing.assert_close(colors, expected, atol=1e-3, rtol=0)
    grey = 116 * ((0.555 / 1.055) ** 2.4) ** (1 / 3) - 16
    assert [float(lightness[0, 0, row, 7]) for row in (0, 5)] == pytest.approx([grey / 100, 0.532408], abs=1e-5)


def test_cells_go_row_by_row_and_find_back() -> None:
    numbers = torch.arange(36.0).view(1, 1, 6, 6)
    cells = cell_means(numbers, patch_size=3, cells=3)[0, ..., 0]
    assert cells[0].tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14] and cells[1, 0] == 3 and cells[2, 0] == 18
    assert torch.equal(cell_map(cells[None, ..., None]), numbers)
    # Cells of four pixels: 0, 1, 6 and 7 have the mean 3.5.
    assert cell_means(numbers, patch_size=2, cells=1)[0, :3, 0, 0].tolist() == [3.5, 5.5, 7.5]


def test_painting_the_colours_of_every_pixel_gives_the_picture_back() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(paint(*lightness_and_colors(images, 4, 4)), images, atol=1e-4, rtol=0)


def test_which_pictures_have_colours() -> None:
    colors = torch.zeros(4, 9, 4, 2)
    colors[1, 3, 2, 1], colors[2, 0, 0, 0], colors[3] = -5.1, 5.1, 4.9
    assert has_colors(colors).tolist() == [False, True, True, False]
