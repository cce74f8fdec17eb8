"""Lab against published values and the definition, there and back again, and what other precisions do to it."""

import pytest
import torch

from lit_pretrain.objectives.color_space import lab_to_srgb, srgb_to_lab

# Of sRGB under D65 by Lindbloom's calculator.
PUBLISHED = {
    (1, 1, 1): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (1, 0, 0): (53.2408, 80.0925, 67.2032),
    (0, 1, 0): (87.7347, -86.1827, 83.1793),
    (0, 0, 1): (32.2970, 79.1875, -107.8602),
    (0, 1, 1): (91.1132, -48.0875, -14.1312),
    (1, 0, 1): (60.3242, 98.2343, -60.8249),
    (1, 1, 0): (97.1393, -21.5537, 94.4780),
}


def as_picture(*colors: tuple[float, ...]) -> torch.Tensor:
    """A picture of one row, (1, 3, 1, colours)."""
    return torch.tensor(colors, dtype=torch.float32).T[None, :, None]


def test_published_values() -> None:
    lab = srgb_to_lab(as_picture(*PUBLISHED))
    torch.testing.assert_close(lab, as_picture(*PUBLISHED.values()), atol=2e-3, rtol=0)


def test_the_definition_by_hand_in_the_dark_and_in_the_light() -> None:
    # 0.04 is on the straight part of sRGB's curve: 0.04 / 12.92; 0.5 is not: ((0.5 + 0.055) / 1.055) ** 2.4.
    dark, light = 0.04 / 12.92, (0.555 / 1.055) ** 2.4
    # As grey, Y is that value; 0.0031 is on the straight part of Lab's curve, whose L is 903.3 Y.
    expected = as_picture((24389 / 27 * dark, 0, 0), (116 * light ** (1 / 3) - 16, 0, 0))
    torch.testing.assert_close(srgb_to_lab(as_picture((0.04,) * 3, (0.5,) * 3)), expected, atol=2e-4, rtol=0)
    # A dark red, all of whose X, Y and Z are on the straight part: f(t) = 7.787 t + 16 / 116.
    x, y, z = (0.4124564 * dark / 0.95047, 0.2126729 * dark, 0.0193339 * dark / 1.08883)
    slope = 841 / 108
    expected = as_picture((24389 / 27 * y, 500 * slope * (x - y), 200 * slope * (y - z)))
    torch.testing.assert_close(srgb_to_lab(as_picture((0.04, 0, 0))), expected, atol=2e-4, rtol=0)


def test_grey_has_no_colour() -> None:
    steps = torch.arange(256) / 255
    assert srgb_to_lab(steps.expand(3, 1, 256))[1:].abs().max() < 1e-3


def test_there_and_back() -> None:
    steps = torch.linspace(0, 1, 33)
    colors = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, 33, -1)
    torch.testing.assert_close(lab_to_srgb(srgb_to_lab(colors)), colors, atol=2e-5, rtol=0)
    # What no screen shows stays in range.
    wild = lab_to_srgb(as_picture((50.0, 120.0, -120.0), (100.0, -100.0, 100.0), (-5.0, 0.0, 0.0)))
    assert wild.min() >= 0 and wild.max() <= 1


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_widened_and_autocast_changes_nothing(autocast: bool) -> None:
    picture = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(srgb_to_lab(picture), srgb_to_lab(picture.clone()))
        assert srgb_to_lab(picture.bfloat16()).dtype == lab_to_srgb(picture.bfloat16()).dtype == torch.float32
        found = srgb_to_lab(picture)
    assert torch.equal(found, srgb_to_lab(picture))
