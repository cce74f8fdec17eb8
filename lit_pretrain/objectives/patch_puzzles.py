"""The picture panel of relative patch location: nine patches as a model puts them together, beside how they belong."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_pretrain.objectives.picture_panels import NEUTRAL, RIGHT, WRONG, grid

if TYPE_CHECKING:
    from PIL.Image import Image

CENTRE = 4


def puzzle_panel(images: Tensor, patches: Tensor, probabilities: Tensor) -> "Image":
    """Draw a row a picture: the picture, the model's arrangement, the true one.

    The model answers for each neighbour alone and may send two to one place, so its arrangement is the most probable
    one that has every place once; frames are green where a patch lies right. In the true arrangement they are green
    where the answer for that neighbour alone is right, as the accuracy counts it.

    Args:
        images: (B, 3, H, W) in [0, 1].
        patches: (B, 9, 3, p, p) in [0, 1], row by row.
        probabilities: (B, 8, 8) of each neighbour's places, neighbours and places row by row around the centre.
    """
    patches, probabilities = patches.float().cpu(), probabilities.float().cpu()
    enlarged = max(1, round(images.shape[-1] / (3 * patches.shape[-1])))  # a puzzle about as large as its picture
    patches = patches.repeat_interleave(enlarged, dim=-1).repeat_interleave(enlarged, dim=-2)
    rows, captions = [], []
    for image, pieces, table in zip(images, patches, probabilities, strict=True):
        places = arrange(table)
        in_place = [place == neighbour for neighbour, place in enumerate(places)]
        alone = (table.argmax(dim=-1) == torch.arange(8)).tolist()
        rows.append([image, mosaic(pieces, places, in_place), mosaic(pieces, list(range(8)), alone)])
        captions.append([None, f"{sum(in_place)} of 8 in place", f"{sum(alone)} of 8 answers right"])
    return grid(rows, captions, ["picture", "the model's puzzle", "the true one"])


def arrange(probabilities: Tensor) -> list[int]:
    """The place of each neighbour in the most probable arrangement of (8, 8) probabilities, on the CPU."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(probabilities.clamp(min=1e-9).log().numpy(), maximize=True)[1].tolist()


def mosaic(patches: Tensor, places: list[int], right: list[bool]) -> Tensor:
    """Put nine patches together, each in a frame.

    Args:
        patches: (9, 3, p, p) on the CPU, the fifth the centre.
        places: Where each of the eight neighbours goes, from 0 (upper left) to 7 (lower right).
        right: Whether a neighbour's frame is green; the centre's is grey.

    Returns:
        (3, side, side).
    """
    frame = max(1, patches.shape[-1] // 8)
    pitch = patches.shape[-1] + 3 * frame
    canvas = torch.ones(3, 3 * pitch - frame, 3 * pitch - frame)
    neighbours = [number for number in range(9) if number != CENTRE]
    cells = {CENTRE: (CENTRE, NEUTRAL)}
    for patch, place, is_right in zip(neighbours, places, right, strict=True):
        cells[patch] = (neighbours[place], RIGHT if is_right else WRONG)
    for patch, (cell, colour) in cells.items():
        top, left = pitch * (cell // 3), pitch * (cell % 3)
        canvas[:, top : top + pitch - frame, left : left + pitch - frame] = torch.tensor(colour).view(3, 1, 1) / 255
        inside = slice(top + frame, top + pitch - 2 * frame), slice(left + frame, left + pitch - 2 * frame)
        canvas[:, inside[0], inside[1]] = patches[patch]
    return canvas
