"""Cropping, flipping and colour changes of whole batches on the device, drawn for each picture by itself.

Loaders only read: they hand over uint8 squares, and what varies from step to step is drawn here from a generator of the
step, so that any step can be replayed. A crop and its flip are one look-up of pixels and lose nothing. The resized crop
follows Inception (Szegedy et al. 2015, arXiv:1409.4842), the colour changes torchvision's definitions.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor

from lit_pretrain.errors import UserError, check_number

# Luma of ITU-R BT.601, torchvision's weights for grey.
GREY_WEIGHTS = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class ImageAugmentation:
    """What is varied in training; evaluation looks at the middle of the picture (`VisionEncoder.frame`).

    Args:
        crop: `random` cuts the encoder's image size out at any place, `resized` cuts a part of any size and form and
            brings it to the image size, `center` takes the middle.
        padding: Pixels by which the picture is continued at each side before a random crop, as in a mirror: black
            borders would tell a model where it is.
        smallest_area: Least share of the picture's area that a resized crop takes.
        flip: Probability that a picture is mirrored, left to right.
        brightness: Largest relative change of brightness; 0 for none.
        contrast: Largest relative change of contrast.
        saturation: Largest relative change of saturation.
        grey: Probability that a picture loses its colours.
    """

    crop: Literal["random", "resized", "center"] = "random"
    padding: int = 0
    smallest_area: float = 0.35
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    grey: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no probability, area or strength."""
        for name in ("padding", "brightness", "contrast", "saturation"):
            check_number(f"augmentation.{name}", getattr(self, name), least=0)
        for name in ("flip", "grey"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"augmentation.{name} is {getattr(self, name)}: give a probability from 0 to 1.")
        if not 0.0 < self.smallest_area <= 1.0:
            raise UserError(f"augmentation.smallest_area is {self.smallest_area}: give a share above 0, at most 1.")

    def check(self, stored_size: int, image_size: int) -> None:
        """Raise `UserError` if the pictures are too small to be cropped, before any training."""
        if self.crop != "resized" and stored_size < image_size:
            raise UserError(
                f"The pictures are {stored_size} pixels wide, smaller than the encoder's image_size of {image_size}: "
                "set data.stored_size to at least that, or lower encoder.image_size (of model.init_from: start "
                "from weights of smaller pictures)."
            )
        if self.padding >= stored_size:
            raise UserError(
                f"augmentation.padding is {self.padding}, as much as the pictures' {stored_size} pixels: lower it."
            )

    def vary(self, images: Tensor, image_size: int, generator: torch.Generator | None) -> Tensor:
        """The training's view of a batch.

        Args:
            images: (B, 3, S, S) uint8.
            image_size: Pixels of a side of the result.
            generator: Source of every draw, on the images' device.

        Returns:
            (B, 3, image_size, image_size) float32 in [0, 1].
        """
        return self.apply(images, image_size, self.draw(images, image_size, generator))

    def draw(self, images: Tensor, image_size: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """What `apply` is to do to each picture: a few numbers for each, (B, ...) by name.

        A batch that is varied in parts is so drawn as a whole, and does not depend on how it is parted.

        Args:
            images: As for `vary`.
            image_size: As for `vary`.
            generator: As for `vary`.
        """
        batch, device = len(images), images.device
        draws = {"flipped": torch.rand(batch, generator=generator, device=device, dtype=torch.float32) < self.flip}
        if self.crop == "resized":
            draws["part"] = torch.rand(4, batch, generator=generator, device=device, dtype=torch.float32).T
        else:
            room = images.shape[-1] + 2 * self.padding - image_size if self.crop == "random" else 0
            middle = round((images.shape[-1] - image_size) / 2)  # as evaluation does
            draws["corner"] = torch.full((batch, 2), middle, device=device)
            if room > 0:
                places = torch.rand(batch, 2, generator=generator, device=device, dtype=torch.float32)
                draws["corner"] = (places * (room + 1)).long() - self.padding
        for name in ("brightness", "contrast", "saturation"):
            if strength := getattr(self, name):
                factor = torch.rand(batch, 1, 1, 1, generator=generator, device=device, dtype=torch.float32)
                draws[name] = (1.0 + strength * (2.0 * factor - 1.0)).clamp_(min=0.0)
        if self.grey:
            draws["grey"] = (
                torch.rand(batch, 1, 1, 1, generator=generator, device=device, dtype=torch.float32) < self.grey
            )
        return draws

    def apply(self, images: Tensor, image_size: int, draws: dict[str, Tensor]) -> Tensor:
        """As `vary`, with what `draw` has drawn for these pictures."""
        if self.crop == "resized":
            views = self._resized(images, image_size, draws["flipped"], draws["part"])
        else:
            views = to_float(cut(images, draws["corner"], image_size, draws["flipped"]))
        return recolour(views, draws)

    def _resized(self, images: Tensor, image_size: int, flipped: Tensor, part: Tensor) -> Tensor:
        """A part of each picture, of an area from `smallest_area` to 1 and a ratio of sides from 3/4 to 4/3."""
        batch = len(images)
        area, ratio, x, y = part.T
        area = self.smallest_area + (1.0 - self.smallest_area) * area
        stretch = torch.exp((2.0 * ratio - 1.0) * (0.5 * math.log(4 / 3)))
        width, height = ((area.sqrt() * factor).clamp(max=1.0) for factor in (stretch, 1.0 / stretch))
        # In affine_grid's coordinates the picture reaches from -1 to 1.
        centre_x, centre_y = (1.0 - width) * (2.0 * x - 1.0), (1.0 - height) * (2.0 * y - 1.0)
        zero = torch.zeros_like(width)
        rows = (torch.where(flipped, -width, width), zero, centre_x, zero, height, centre_y)
        theta = torch.stack(rows, dim=1).view(batch, 2, 3)
        grid = functional.affine_grid(theta, [batch, 3, image_size, image_size], align_corners=False)
        views = functional.grid_sample(to_float(images), grid, padding_mode="border", align_corners=False)
        return views.clamp_(0.0, 1.0)


def recolour(views: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """Brightness, contrast and saturation, in this order, by factors of the picture's own, and grey, where drawn."""
    if "brightness" in draws:
        views = (views * draws["brightness"]).clamp_(0.0, 1.0)
    if "contrast" in draws:
        mean = grey(views).mean(dim=(-2, -1), keepdim=True)
        views = torch.lerp(mean, views, draws["contrast"]).clamp_(0.0, 1.0)
    if "saturation" in draws:
        views = torch.lerp(grey(views), views, draws["saturation"]).clamp_(0.0, 1.0)
    if "grey" in draws:
        views = torch.where(draws["grey"], grey(views), views)
    return views


def cut(images: Tensor, corner: Tensor, size: int, flipped: Tensor) -> Tensor:
    """Squares of each picture, mirrored where asked, the pictures being continued as in a mirror beyond their edges.

    Args:
        images: (B, C, S, S).
        corner: (B, 2) row and column of the upper left pixel; may lie outside by less than S.
        size: Pixels of a side of the squares.
        flipped: (B,) booleans.

    Returns:
        (B, C, size, size), of the images' type.
    """
    batch, channels, stored, _ = images.shape
    steps = torch.arange(size, device=images.device)
    rows = corner[:, 0, None] + steps
    columns = corner[:, 1, None] + torch.where(flipped[:, None], steps.flip(0), steps)
    rows, columns = (mirrored(places, stored) for places in (rows, columns))
    places = (rows[:, :, None] * stored + columns[:, None, :]).view(batch, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, places).view(batch, channels, size, size)


def mirrored(index: Tensor, length: int) -> Tensor:
    """Indices from -(length - 1) to 2 length - 2 brought into [0, length) by reflection at the outermost pixels."""
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)


def to_float(images: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255.0)


def grey(images: Tensor) -> Tensor:
    """Luma of (B, 3, H, W) as (B, 1, H, W)."""
    # Three numbers and not a tensor of them, which would have to be copied to the device.
    red, green, blue = (weight * channel for weight, channel in zip(GREY_WEIGHTS, images.unbind(dim=1), strict=True))
    return (red + green + blue)[:, None]
