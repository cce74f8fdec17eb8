"""Pictures decoded whenever they are asked for, for sources too large to be kept decoded; best with several workers."""

import sys
from typing import Any

import numpy
import torch
from torch import Tensor

from lit_pretrain.data.images.decoding import BLOCK, decode_blocks, no_readable
from lit_pretrain.data.images.image_cache import NAMED, Corrupt
from lit_pretrain.data.images.image_source import EncodedPictures
from lit_pretrain.data.images.picture_statistics import PictureStatistics
from lit_pretrain.data.images.pictures import EncodedPicture, Square, UnreadablePictureError, decode
from lit_pretrain.errors import UserError

# Pictures at even distances from which grey share, mean and spread are estimated.
ESTIMATED_ON = 256


class ImageReader:
    """Answers as `ImageCache` does, decoding.

    A damaged picture that may be skipped is replaced by the next readable one of those to choose from, so batches stay
    full, nothing of the validation comes into the training, and the same batch is the same again.

    Args:
        pictures: Where they come from.
        square: What they become.
        corrupt: Whether damaged pictures are an error or replaced.

    Raises:
        UserError: If one of the pictures that are looked at first is damaged and may not be, or has another size.
    """

    def __init__(self, pictures: EncodedPictures, square: Square, corrupt: Corrupt) -> None:
        self.pictures, self.square, self.corrupt = pictures, square, corrupt
        self.rows = numpy.arange(len(pictures))
        # Shared by worker processes, so that each damaged picture is counted and told of once.
        self.damaged = torch.zeros(len(pictures), dtype=torch.bool).share_memory_()
        self.facts: dict[str, Any] = {"stored_size": square.side, "pictures": len(pictures)}
        self.facts |= self._estimate().facts()

    def _estimate(self) -> PictureStatistics:
        """Statistics of some pictures."""
        statistics, unreadable = PictureStatistics(), []
        some = numpy.linspace(0, len(self.rows) - 1, min(ESTIMATED_ON, len(self.rows))).astype(int).tolist()
        for block in decode_blocks(self.pictures, some, self.square):
            statistics.add(block.statistics)
            unreadable += block.unreadable
            if block.unreadable and self.corrupt == "error":
                raise damaged_picture(block.unreadable[0])
        if statistics.pictures == 0:
            raise no_readable(self.pictures, unreadable)
        return statistics

    @property
    def skipped(self) -> int:
        """Damaged pictures that were met so far."""
        return int(self.damaged.sum())

    def gather(self, members: numpy.ndarray, indices: numpy.ndarray) -> tuple[Tensor, numpy.ndarray]:
        """Decode some pictures; as `ImageCache.gather`, but a place may be another member's than the one asked for.

        Raises:
            UserError: If a picture is damaged and may not be, or has another size.
        """
        images = numpy.empty((len(indices), 3, self.square.side, self.square.side), dtype=numpy.uint8)
        places = numpy.empty(len(indices), dtype=numpy.int64)
        for start in range(0, len(indices), BLOCK):
            part = indices[start : start + BLOCK]
            for offset, picture in enumerate(self.pictures.read(members[part].tolist())):
                images[start + offset], places[start + offset] = self._readable(picture, members, int(part[offset]))
        return torch.from_numpy(images), places

    def _readable(self, picture: EncodedPicture, members: numpy.ndarray, index: int) -> tuple[numpy.ndarray, int]:
        """A picture's pixels and place, or those of the next member that can be read."""
        for step in range(len(members)):
            place = int(members[(index + step) % len(members)])
            if self.damaged[place]:
                continue
            if step:
                (picture,) = self.pictures.read([place])
            try:
                return decode(picture, self.square), place
            except UnreadablePictureError as error:
                if self.corrupt == "error":
                    raise damaged_picture(str(error)) from error
                self._note(place, str(error))
        raise UserError(f"None of {len(members)} pictures of {self.pictures.source} can be read: check the files.")

    def _note(self, place: int, error: str) -> None:
        self.damaged[place] = True
        if self.skipped <= NAMED:
            print(f"A picture cannot be read and is replaced by the next one: {error}", file=sys.stderr, flush=True)
        elif self.skipped == NAMED + 1:
            print("More pictures cannot be read; they are replaced too, and counted.", file=sys.stderr, flush=True)


def damaged_picture(error: str) -> UserError:
    """What is said of one damaged picture."""
    return UserError(f"A picture cannot be read ({error}): repair or remove it, or set data.corrupt to skip.")
