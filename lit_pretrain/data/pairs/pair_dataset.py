"""Batches of pictures with captions: one caption of each, drawn anew in every epoch, or all of them."""

import hashlib

import numpy
import torch
from torch import Tensor

from lit_pretrain.data.images.image_dataset import ImageStore
from lit_pretrain.data.loading import Key
from lit_pretrain.data.randomness import sample_generator
from lit_pretrain.data.text.text_encoding import EncodedTexts


class CaptionedPictures:
    """Some of a store's pictures with the captions of each.

    Args:
        images: Gives the pixels.
        members: (M,) places in the store, ascending.
        texts: Captions as word pieces.
        captions: (C,) which of them, those of the first member first.
        counts: (M,) how many each member has, at least one.
    """

    def __init__(
        self,
        images: ImageStore,
        members: numpy.ndarray,
        texts: EncodedTexts,
        captions: numpy.ndarray,
        counts: numpy.ndarray,
    ) -> None:
        self.images, self.members, self.texts, self.captions, self.counts = images, members, texts, captions, counts
        self.firsts = numpy.cumsum(counts) - counts
        self._keys: dict[int, int] = {}

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.members)

    def gather(self, indices: numpy.ndarray) -> tuple[Tensor, numpy.ndarray]:
        """Pictures (B, 3, S, S) uint8 of some members, and (B,) which they are: others in the place of damaged ones."""
        images, places = self.images.gather(self.members, indices)
        return images, numpy.searchsorted(self.members, places)

    def fields(self, images: Tensor, places: numpy.ndarray) -> dict[str, Tensor]:
        """What a batch says of its pictures.

        Returns:
            `images` (B, 3, S, S) uint8, `sample_id` (B,) rows of the source, and `picture_key` (B,) equal for equal
            pixels, under whatever names they lie in the source.
        """
        for image, index in zip(images, places.tolist(), strict=True):
            if index not in self._keys:
                self._keys[index] = key_of(image.numpy().tobytes())
        keys = torch.tensor([self._keys[index] for index in places.tolist()], dtype=torch.long)
        rows = torch.from_numpy(self.images.rows[self.members[places]])
        return {"images": images, "sample_id": rows, "picture_key": keys}

    def encoded(self, captions: numpy.ndarray) -> dict[str, Tensor]:
        """Captions as word pieces: `input_ids`, `attention_mask` (T, L), `padded`, `caption_id`, `caption_key` (T,)."""
        batch = self.texts.batch(captions)
        ends = self.texts.ends
        keys = [
            key_of(self.texts.tokens[ends[caption - 1] if caption else 0 : ends[caption]].tobytes())
            for caption in captions
        ]
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "padded": batch["padded"],
            "caption_id": torch.from_numpy(captions),
            "caption_key": torch.tensor(keys, dtype=torch.long),
        }


class PairDataset(CaptionedPictures):
    """A picture and one of its captions a sample.

    Args:
        images: As for `CaptionedPictures`.
        members: As there.
        texts: As there.
        captions: As there.
        counts: As there.
        seed: With the epoch, the source of which caption is drawn.
    """

    def __init__(
        self,
        images: ImageStore,
        members: numpy.ndarray,
        texts: EncodedTexts,
        captions: numpy.ndarray,
        counts: numpy.ndarray,
        seed: int = 0,
    ) -> None:
        super().__init__(images, members, texts, captions, counts)
        self.seed = seed
        self._drawn: tuple[int, numpy.ndarray] | None = None

    def population(self, epoch: int) -> int:
        """Number of pictures; the captions of the epoch are drawn."""
        self.drawn(epoch)
        return len(self)

    def drawn(self, epoch: int) -> numpy.ndarray:
        """(M,) which caption each picture has in an epoch."""
        if self._drawn is None or self._drawn[0] != epoch:
            draws = sample_generator(self.seed, "captions", epoch).random(len(self))
            self._drawn = epoch, self.captions[self.firsts + (draws * self.counts).astype(numpy.int64)]
        return self._drawn[1]

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        """A batch of (epoch, index) keys, all of one epoch: `CaptionedPictures`' fields of pictures and captions."""
        images, rows = self.gather(numpy.array([index for _, index in keys]))
        return self.fields(images, rows) | self.encoded(self.drawn(keys[0][0])[rows])


class GalleryDataset(CaptionedPictures):
    """Every picture once, with all its captions, for retrieval."""

    def population(self, epoch: int) -> int:
        """Number of pictures."""
        return len(self)

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        """Some pictures and all their captions.

        Returns:
            `CaptionedPictures`' fields, captions (T, ...) being more than pictures (B, ...), with `picture` (B,) and
            `caption_picture` (T,): the picture's index in this data set. Damaged pictures are left out.
        """
        indices = numpy.array([index for _, index in keys])
        images, rows = self.gather(indices)
        readable = rows == indices
        images, rows = images[torch.from_numpy(readable)], rows[readable]
        captions = [self.captions[self.firsts[row] : self.firsts[row] + self.counts[row]] for row in rows]
        owners = torch.from_numpy(numpy.repeat(rows, self.counts[rows]))
        return {
            **self.fields(images, rows),
            **self.encoded(numpy.concatenate(captions)),
            "picture": torch.from_numpy(rows),
            "caption_picture": owners,
        }


def key_of(content: bytes) -> int:
    """63 bits that are equal for equal contents."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1
