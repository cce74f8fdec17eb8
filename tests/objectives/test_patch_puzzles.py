"""The puzzle: patches lie where the model says, each place once, and frames tell which answers are right."""

import numpy
import torch

from lit_pretrain.objectives.patch_puzzles import arrange, mosaic, puzzle_panel
from lit_pretrain.objectives.picture_panels import GAP, MARGIN, NEUTRAL, RIGHT, WRONG


def numbered() -> torch.Tensor:
    """Nine patches of 8 pixels, the n-th of brightness n / 10."""
    return (torch.arange(9) / 10).view(9, 1, 1, 1).expand(-1, 3, 8, 8)


def test_mosaic_puts_patches_and_frames_where_they_are_told() -> None:
    # The upper left and the upper neighbour change places.
    canvas = mosaic(numbered(), [1, 0, 2, 3, 4, 5, 6, 7], [False, False, True, True, True, True, True, True])
    assert canvas.shape == (3, 32, 32)  # three patches of 8 with frames of 1, and two spaces of 1
    middles = canvas[0, 5::11, 5::11] * 10
    torch.testing.assert_close(middles, torch.tensor([[1.0, 0, 2], [3, 4, 5], [6, 7, 8]]))
    frames = [
        tuple((255 * canvas[:, 11 * row, 11 * column]).round().int().tolist())
        for row, column in ((0, 0), (0, 1), (0, 2), (1, 1))
    ]
    assert frames == [WRONG, WRONG, RIGHT, NEUTRAL]


def test_two_neighbours_sent_to_one_place_are_parted_by_what_is_most_probable() -> None:
    probabilities = torch.eye(8) * 0.9 + 0.1 / 8
    assert arrange(probabilities) == list(range(8))
    # The first two both say "top"; the second is surer, so the first gets the place that is left, its own.
    probabilities[0] = torch.tensor([0.3, 0.6, 0.1, 0, 0, 0, 0, 0])
    assert arrange(probabilities) == list(range(8))
    probabilities[1] = torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0])
    assert arrange(probabilities) == [1, 0, 2, 3, 4, 5, 6, 7]


def test_answers_are_marked_alone_in_the_true_arrangement_and_together_in_the_models() -> None:
    probabilities = torch.eye(8) * 0.9 + 0.1 / 8
    probabilities[0] = torch.tensor([0.3, 0.6, 0.1, 0, 0, 0, 0, 0])
    panel = numpy.array(puzzle_panel(torch.zeros(1, 3, 32, 32), numbered()[None], probabilities[None]))
    columns = (panel == WRONG).all(axis=2).any(axis=0).nonzero()[0]
    first = numpy.array(mosaic(numbered(), list(range(8)), [False] + [True] * 7))
    shown = 3 * first.shape[2]  # a puzzle of 32 pixels is shown three times as large, like its picture
    # Nothing is wrong in the model's puzzle; in the true one the first patch is, a frame of 10 pixels three times over.
    assert columns.min() > MARGIN + shown + GAP + shown and columns.max() - columns.min() + 1 == 30
