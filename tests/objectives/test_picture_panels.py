"""Panels: what is enlarged stays sharp, frames and captions have the right colours, and nothing is cut off."""

import numpy
import pytest
import torch
from PIL import Image

from lit_pretrain.objectives.picture_panels import FRAME, GAP, INK, MARGIN, NEUTRAL, PAPER, RIGHT, WRONG, Caption, grid


def test_each_pixel_becomes_a_square_inside_its_frame() -> None:
    picture = torch.tensor([[[0.0, 1.0], [0.5, 2.0]]]).expand(3, -1, -1) * torch.tensor([1.0, 0.2, 0.0]).view(3, 1, 1)
    panel = numpy.array(grid([[picture]], scale=3))
    side = 2 * 3 + 2 * FRAME
    assert panel.shape == (side + 2 * MARGIN, side + 2 * MARGIN, 3)
    inside = panel[MARGIN + FRAME : -MARGIN - FRAME, MARGIN + FRAME : -MARGIN - FRAME]
    # 2.0 is clipped to 1 in red and stands at 0.4 in green.
    small = numpy.array([[[0, 0, 0], [255, 51, 0]], [[128, 26, 0], [255, 102, 0]]])
    assert numpy.array_equal(inside, small.repeat(3, axis=0).repeat(3, axis=1))
    assert tuple(panel[MARGIN, MARGIN]) == NEUTRAL and tuple(panel[0, 0]) == PAPER


@pytest.mark.parametrize("right, colour", [(True, RIGHT), (False, WRONG), (None, NEUTRAL)])
def test_frame_and_caption_tell_right_from_wrong(right, colour) -> None:
    panel = numpy.array(grid([[torch.zeros(3, 8, 8)]], [[Caption("told", right)]]))
    assert tuple(panel[MARGIN, panel.shape[1] // 2]) == colour
    below = panel[MARGIN + 96 + 2 * FRAME :].reshape(-1, 3).tolist()
    assert list(INK if right is None else colour) in below


def test_no_text_is_cut_and_rows_may_be_uneven() -> None:
    picture, text = torch.ones(1, 4, 4), "a caption wider than its picture"
    alone = grid([[picture]], scale=1)
    panel = grid([[picture, None], [picture]], [[text, None], [None]], ["", "heading"], scale=1)
    assert panel.width > alone.width + GAP and panel.height > 2 * alone.height - 2 * MARGIN
    ink = (numpy.array(panel).astype(int).sum(axis=2) < 300).any(axis=0).nonzero()[0]
    assert MARGIN <= ink.min() < ink.max() < panel.width - MARGIN
    with pytest.raises(ValueError, match="zip"):
        grid([[picture, picture]], [[text]])


def test_small_pictures_are_enlarged_to_be_seen_and_large_ones_are_not() -> None:
    sizes = {side: grid([[torch.zeros(3, side, side)]]).width - 2 * MARGIN - 2 * FRAME for side in (32, 40, 96, 224)}
    assert sizes == {32: 96, 40: 120, 96: 96, 224: 224}
    pillow = Image.new("L", (32, 16), 255)
    assert grid([[pillow]], scale=2).size == (64 + 2 * FRAME + 2 * MARGIN, 32 + 2 * FRAME + 2 * MARGIN)
