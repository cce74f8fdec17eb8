"""Crops of scikit-learn's two sample photographs: real contents, real compression, offline."""

import io
from functools import cache

import numpy
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor


@cache
def photographs(quality: int | None = None) -> list[Tensor]:
    """Both photographs, (3, 427, 640) in [0, 1]; stored as JPEG anew if a quality is given."""
    pictures = []
    for pixels in load_sample_images().images:
        if quality is not None:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "jpeg", quality=quality)
            pixels = numpy.array(Image.open(file))
        pictures.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255)
    return pictures


def crops(count: int, size: int, shrink: int = 1, quality: int | None = None, phase: int | None = None) -> Tensor:
    """Random square crops, the two photographs in turn: (count, 3, size, size).

    Args:
        count: Number of crops.
        size: Pixels of a side.
        shrink: Factor by which the photographs are made smaller before, so that a crop shows more.
        quality: Of the JPEG files, see `photographs`.
        phase: Row and column of a crop's upper left pixel modulo 8; null for any.
    """
    draws = torch.Generator().manual_seed(count + size)
    found = []
    for number in range(count):
        photograph = photographs(quality)[number % 2]
        if shrink > 1:
            photograph = torch.nn.functional.avg_pool2d(photograph, shrink)
        top, left = (int(torch.randint(0, side - size - 7, (), generator=draws)) for side in photograph.shape[1:])
        if phase is not None:
            top, left = top // 8 * 8 + phase, left // 8 * 8 + phase
        found.append(photograph[:, top : top + size, left : left + size])
    return torch.stack(found)
