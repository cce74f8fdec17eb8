"""Nine patches of a picture for the task of Doersch et al. (2015, arXiv:1505.05192), and what is done to each.

Everything is vectorised over the batch: each patch of each picture has its own draws.
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    from lit_pretrain.backbone.vision_encoder import VisionEncoder

CELLS = 3  # cells of a side


@dataclass(frozen=True)
class PatchGrid:
    """Where nine patches lie in a square picture: each anywhere in a window in the middle of its cell.

    Attributes:
        image_size: Pixels of the picture's side.
        patch: Pixels of a patch's side.
        gap: Pixels that stay free between neighbouring windows, and so, at least, between neighbouring patches.
        jitter: Pixels that a patch can move within its window, along each axis.
    """

    image_size: int
    patch: int
    gap: int
    jitter: int

    @classmethod
    def fitted(
        cls, image_size: int, patch_size: int, gap: float, jitter: float, patch_pixels: int | None = None
    ) -> "PatchGrid | None":
        """The grid for a picture; what rounding leaves over goes to the gap.

        Args:
            image_size: Pixels of the picture's side.
            patch_size: Of the encoder, which a patch's side is a multiple of.
            gap: Least gap, as a share of a cell; rounded, but at least a pixel unless it is 0.
            jitter: Movement, as a share of a cell; rounded in the same way.
            patch_pixels: Pixels of a patch's side; null for the largest that fits.

        Returns:
            The grid, or null if no patch fits.
        """
        cell = image_size // CELLS
        least_gap, movement = (max(1, round(share * cell)) if share else 0 for share in (gap, jitter))
        room = cell - least_gap - movement
        patch = room // patch_size * patch_size if patch_pixels is None else patch_pixels
        if not patch_size <= patch <= room:
            return None
        return cls(image_size, patch, cell - patch - movement, movement)

    def corners(self, pictures: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Draw the patches' upper left corners: (B, 9, 2) integers, row and column, cells row by row."""
        cell = self.image_size // CELLS
        # Half of the gap lies on either side of a window, and pixels that no cell has on either side of the nine.
        start = (self.image_size - CELLS * cell) // 2 + self.gap // 2
        number = torch.arange(CELLS**2, device=device)
        cells = torch.stack([number // CELLS, number % CELLS], dim=-1)
        moved = torch.randint(0, self.jitter + 1, (pictures, CELLS**2, 2), generator=generator, device=device)
        return start + cell * cells + moved


def grid_for(
    objective: str, encoder: "VisionEncoder", gap: float, jitter: float, patch_pixels: int | None
) -> PatchGrid:
    """The grid for an encoder's pictures; see `PatchGrid.fitted`.

    Args:
        objective: Whose class has these settings.
        encoder: Tells how large pictures and its own patches are.
        gap: Least gap, as a share of a cell.
        jitter: Movement, as a share of a cell.
        patch_pixels: Pixels of a patch's side; null for the largest that fits.

    Raises:
        UserError: If no patch fits.
    """

    def fitted(image_size: int) -> PatchGrid | None:
        return PatchGrid.fitted(image_size, encoder.patch_size, gap, jitter, patch_pixels)

    if patch_pixels is not None and (patch_pixels < 1 or patch_pixels % encoder.patch_size):
        raise UserError(
            f"{objective}.patch_pixels is {patch_pixels}, not a multiple of encoder.patch_size {encoder.patch_size}: "
            "give a multiple, or null for the largest that fits."
        )
    found = fitted(encoder.image_size)
    if found is None:
        larger = next(size for size in itertools.count(encoder.image_size, encoder.patch_size) if fitted(size))
        raise UserError(
            f"{objective} cuts pictures of {encoder.image_size} pixels into 3 x 3 cells, too small for a patch of "
            f"{patch_pixels or encoder.patch_size} with its gap and jitter: encoder.image_size {larger} is the next "
            "that works, or set smaller patches."
        )
    return found


def cut(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """Cut square patches out of pictures.

    Args:
        images: (B, C, H, W).
        corners: (B, K, 2) integers: row and column of each patch's upper left pixel.
        size: Pixels of a patch's side.

    Returns:
        (B, K, C, size, size).
    """
    along = torch.arange(size, device=images.device)
    rows = (corners[..., 0, None] + along)[..., :, None]
    columns = (corners[..., 1, None] + along)[..., None, :]
    picture = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    return images.permute(0, 2, 3, 1)[picture, rows, columns].permute(0, 1, 4, 2, 3)


def drop_to_grey(images: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Replace the colours of a share of (M, 3, H, W) images by their lightness (Rec. 601), in all three channels."""
    from torchvision.transforms.v2.functional import rgb_to_grayscale  # 3 seconds of start-up that text need not pay

    return torch.where(draw(images, share, generator), rgb_to_grayscale(images, num_output_channels=3), images)


def drop_channels(images: Tensor, share: float, fill: Tensor, generator: torch.Generator | None) -> Tensor:
    """Keep one channel, drawn anew for each, of a share of (M, 3, H, W) images.

    The others become noise around `fill` (3, 1, 1), its standard deviation a hundredth of the kept channel's, as
    Doersch et al. have it (section 3.1).
    """
    kept = torch.randint(0, 3, (len(images), 1, 1, 1), generator=generator, device=images.device)
    is_kept = torch.arange(3, device=images.device).view(1, 3, 1, 1) == kept
    deviation = images.std(dim=(2, 3), keepdim=True, correction=0).gather(1, kept)
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    dropped = torch.where(is_kept, images, fill + noise * deviation / 100)
    return torch.where(draw(images, share, generator), dropped, images)


def draw(images: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Booleans (M, 1, 1, 1), each true with the probability `share`."""
    chance = torch.rand((len(images), 1, 1, 1), generator=generator, device=images.device, dtype=torch.float32)
    return chance < share


def standardize(images: Tensor) -> Tensor:
    """Give each of (M, C, H, W) images mean 0 and standard deviation 1 over all its values.

    The deviation is taken as at least one over the root of their number (as TensorFlow's `per_image_standardization`),
    so that an even image becomes zeros and not noise.
    """
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    deviation = images.std(dim=(1, 2, 3), keepdim=True, correction=0)
    return (images - mean) / deviation.clamp(min=images[0].numel() ** -0.5)
