"""sRGB to CIE Lab and back, under daylight (D65), for batches of pictures on any device.

Lab parts a colour into lightness L and two colour axes, a (green to red) and b (blue to yellow), such that equal
distances look about equally large. The curve is IEC 61966-2-1's, the matrices are Lindbloom's for sRGB. The white is
the colour of (1, 1, 1) itself, so grey has a = b = 0 but for rounding.
"""

import torch
from torch import Tensor

RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
XYZ_TO_RGB = (
    (3.2404542, -1.5371385, -0.4985314),
    (-0.9692660, 1.8760108, 0.0415560),
    (0.0556434, -0.2040259, 1.0572252),
)
WHITE = tuple(sum(row) for row in RGB_TO_XYZ)
# Below this Lab's cube root is replaced by the line that touches it.
KNEE = 6 / 29
SLOPE = 3 * KNEE**2


def srgb_to_lab(images: Tensor) -> Tensor:
    """Convert pictures to Lab.

    Args:
        images: (..., 3, H, W) sRGB in [0, 1].

    Returns:
        (..., 3, H, W), float32 or wider: L from 0 to 100; a and b, which sRGB keeps within -87 to 99 and -108 to 95.
    """
    images = images if images.dtype == torch.float64 else images.float()
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055) ** 2.4, images / 12.92)
    relative = [[value / white for value in row] for row, white in zip(RGB_TO_XYZ, WHITE, strict=True)]
    xyz = mix(linear, relative)
    root = torch.where(xyz > KNEE**3, xyz ** (1 / 3), xyz / SLOPE + 4 / 29)
    x, y, z = root.unbind(dim=-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def lab_to_srgb(lab: Tensor) -> Tensor:
    """Convert pictures (..., 3, H, W) from Lab to sRGB in [0, 1]; what sRGB lacks is clipped, channel by channel."""
    lab = lab if lab.dtype == torch.float64 else lab.float()
    lightness, a, b = lab.unbind(dim=-3)
    y = (lightness + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], dim=-3)
    xyz = torch.where(root > KNEE, root**3, SLOPE * (root - 4 / 29))
    absolute = [[value * white for value, white in zip(row, WHITE, strict=True)] for row in XYZ_TO_RGB]
    linear = mix(xyz, absolute).clamp(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def mix(channels: Tensor, matrix: list[list[float]]) -> Tensor:
    """A 3 x 3 matrix times the three channels of (..., 3, H, W).

    Sums and not a matrix product, which autocast would take to bf16 and some GPUs to TF32.
    """
    first, second, third = channels.unbind(dim=-3)
    mixed = [torch.add(torch.add(first * x, second, alpha=y), third, alpha=z) for x, y, z in matrix]
    return torch.stack(mixed, dim=-3)
