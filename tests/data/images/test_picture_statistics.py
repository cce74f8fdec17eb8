"""Grey or not, mean and spread, against NumPy on all pixels at once."""

import numpy
import pytest

from lit_pretrain.data.images.picture_statistics import PictureStatistics


def test_sums_of_parts_are_those_of_all():
    images = numpy.random.default_rng(0).integers(0, 256, (10, 3, 5, 5), dtype=numpy.uint8)
    images[:, 1] //= 3
    total = PictureStatistics()
    for part in (images[:3], images[3:3], images[3:]):
        total.add(PictureStatistics.of(part))
    facts = total.facts()
    scaled = images.astype(numpy.float64) / 255
    assert facts["mean"] == pytest.approx(scaled.mean(axis=(0, 2, 3)))
    assert facts["std"] == pytest.approx(scaled.std(axis=(0, 2, 3)))
    assert facts["grey_share"] == 0.0


def test_one_pixel_of_colour_is_no_grey_and_two_levels_are_no_colour():
    images = numpy.full((4, 3, 2, 2), 100, dtype=numpy.uint8)
    images[1, 0], images[1, 2] = 101, 99
    images[2, 1, 1, 1] = 103
    images[3] = 255
    facts = PictureStatistics.of(images).facts()
    assert facts["grey_share"] == 0.75
    # Bright pictures overflow nothing.
    bright = PictureStatistics.of(images[3:]).facts()
    assert bright == {"grey_share": 1.0, "mean": [1.0] * 3, "std": [0.0] * 3}
