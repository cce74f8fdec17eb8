"""The traces of borders, compression, contours and lenses on small pictures, by hand."""

import torch

from lit_pretrain.objectives.picture_shortcuts import (
    border_features,
    chroma_features,
    color_layout_features,
    compression_features,
    continuity_features,
)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_margins_above_right_below_left_and_even_corners() -> None:
    images = noise(6, 3, 16, 16)
    images[1, :, :3] = 0.2  # three even rows above, each of its own colour
    images[1, :, 1] = 0.7
    images[2, ..., -2:] = images[2, ..., -3:-2]  # the last column repeated twice, so three are alike
    images[3, :, -1] = 1.0
    images[4, ..., :5] = 0.0
    images[5, :, 0, 14:] = images[5, :, 1, 15:] = 0.0  # two pixels of the first row and one below
    features = border_features(images)
    margins = torch.tensor([[0, 0, 0, 0], [3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 5], [0, 0, 0, 0]]) / 16
    torch.testing.assert_close(features[:, :4], margins)
    # Upper left, upper right, lower right, lower left; a corner is two pixels of the outer line and one of the next.
    corners = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0]]
    assert features[:, 4:].tolist() == corners


def test_blocks_are_found_where_they_begin_and_a_slope_is_not() -> None:
    columns = torch.arange(32)
    blocks = ((columns + 5) // 8).float().expand(1, 3, 32, 32)  # new blocks at columns 3, 11, 19 and 27
    features = compression_features(blocks)[0]
    # A step of 1 at each of 4 of 31 places: it exceeds its neighbours by 1, they theirs by -1/2, the mean step is 4/31.
    expected = torch.tensor([0, -1 / 2, 1, -1 / 2, 0, 0, 0, 0]) * 31 / 4
    torch.testing.assert_close(features[:8], expected)
    assert not features[8:].any()
    busier_to_the_right = (columns.float() ** 2).expand(1, 3, 32, 32)
    torch.testing.assert_close(compression_features(busier_to_the_right), torch.zeros(1, 16))
    assert compression_features(noise(2, 3, 3, 3)).tolist() == [[0.0] * 16] * 2


def test_layout_is_the_mean_colour_of_each_cell() -> None:
    cells = noise(2, 3, 4, 4)
    pictures = cells.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    pictures[..., 0, 0] += 0.9
    cells[..., 0, 0] += 0.1  # one of nine pixels
    torch.testing.assert_close(color_layout_features(pictures), cells.flatten(1))


def test_contours_run_on_across_the_facing_lines_only() -> None:
    centre, neighbours = noise(1, 3, 6, 6), noise(4, 3, 6, 6).flip(0)
    neighbours[0, :, -1] = 3 * centre[0, :, 0] + 1  # contrast and brightness do not matter
    neighbours[1, :, 0] = centre[0, :, -1]
    neighbours[2, :, :, -1] = centre[0, :, :, 0]
    neighbours[3, :, :, 0] = -centre[0, :, :, -1]
    features = continuity_features(centre.expand(4, -1, -1, -1), neighbours)
    torch.testing.assert_close(features.diagonal(), torch.tensor([1.0, 1.0, 1.0, -1.0]))
    assert features[~torch.eye(4, dtype=torch.bool)].abs().max() < 0.9
    assert not continuity_features(torch.ones(1, 3, 6, 6), neighbours[:1]).any()


def test_displaced_colours_are_found_with_their_direction() -> None:
    scene = noise(1, 1, 12, 12)
    red, green, blue = scene[..., 1:11, 2:12], scene[..., 1:11, 1:11], scene[..., 2:12, 1:11]
    # Red shows one column further right of the scene: what green has at x, red has at x - 1; blue the same by rows.
    features = chroma_features(torch.cat([red, green, blue], dim=1))[0].view(2, 2, 3)
    torch.testing.assert_close(features[0, 0, 0], torch.tensor(1.0))
    torch.testing.assert_close(features[1, 1, 0], torch.tensor(1.0))
    assert features[0, 0, 1:].max() < 0.5 and features[1, 1, 1:].max() < 0.5
    grey = chroma_features(scene.expand(-1, 3, -1, -1))[0].view(2, 2, 3)
    torch.testing.assert_close(grey[..., 1], torch.ones(2, 2))
    assert (
        chroma_features(noise(2, 3, 3, 3)).tolist() == [[0.0] * 12] * 2 == chroma_features(noise(2, 3, 1, 1)).tolist()
    )
