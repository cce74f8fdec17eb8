"""From pictures at rest to batches that an encoder takes: ours beside a torchvision loader as people write it.

Ours reads decoded squares from the memory-mapped cache, and crops, flips and normalises whole batches; torchvision's
decodes, crops, flips and normalises each picture by itself, in every epoch. Both have one thread and no worker, so that
the figures are those of one core. The encoded pictures lie in memory, or in the system's cache of files, which favours
torchvision; the time to build our cache once is told beside.
"""

import argparse
import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_pretrain.commands.benchmarks.contest import Contestant, Race
from lit_pretrain.commands.benchmarks.tables import RATIOS, Column, Row, rows_of
from lit_pretrain.commands.benchmarks.vit_step import AUGMENTATION, Shape
from lit_pretrain.data import ImageDataModule
from lit_pretrain.data.images.image_source import ImageSource, open_pictures
from lit_pretrain.data.images.pictures import EncodedPicture, size_of
from lit_pretrain.required import required

COLUMNS = (
    Column("us/picture", "microseconds_per_picture"),
    Column("pictures/s", "pictures_per_second"),
    *RATIOS[:2],
)


class PilPictures(Dataset):
    """Pictures decoded when asked for, as most training scripts have it.

    Args:
        contents: Of each picture its bytes, or the path of its file.
        transform: From a PIL picture to a tensor.
    """

    def __init__(self, contents: Sequence[bytes | str], transform: Callable[[Image.Image], Tensor]) -> None:
        self.contents, self.transform = contents, transform

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.contents)

    def __getitem__(self, index: int) -> Tensor:
        """A picture as the transform returns it."""
        content = self.contents[index]
        return self.transform(Image.open(BytesIO(content) if isinstance(content, bytes) else content).convert("RGB"))


@dataclass
class PictureInput:
    """The two readers, and what ours has prepared.

    Attributes:
        race: Their race.
        pictures: Number of pictures.
        seconds_to_build: Seconds that our cache took, once for all trainings.
    """

    race: Race
    pictures: int
    seconds_to_build: float

    @property
    def rows(self) -> list[Row]:
        """A row for each reader, once the race was held."""
        rows = rows_of(self.race, "32-true", peak=1.0)
        for row in rows:
            row["microseconds_per_picture"] = 1e6 / row["pictures_per_second"]
        rows[0] |= {"cached_pictures": self.pictures, "seconds_to_build_cache": self.seconds_to_build}
        return rows

    @property
    def title(self) -> str:
        """Of the table."""
        return f"Reading pictures: decode, crop, flip, normalise; batches of {self.race.amount}, one thread"

    @property
    def remark(self) -> str:
        """What the table does not tell."""
        return f"Ours decoded the {self.pictures:,} pictures once before, in {self.seconds_to_build:.1f} s."


@contextlib.contextmanager
def picture_input(arguments: argparse.Namespace) -> Iterator[PictureInput]:
    """Both readers of the pictures that the arguments name; our cache is removed afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        data = ImageDataModule(
            path=arguments.images,
            stored_size=arguments.stored_size,
            batch_size=arguments.batch_size,
            cache=True,
            validation_share=0.0,
            cache_directory=directory,
        )
        start = time.perf_counter()
        data.prepare_data()
        seconds = time.perf_counter() - start
        data.setup("fit")
        opened = open_pictures(ImageSource(arguments.images), Path(directory))
        pictures = opened.read(range(len(opened)))
        contestants = [our_reader(data), torchvision_reader(pictures, required(data.stored_size), arguments.batch_size)]
        name = f"{data.stored_size} x {data.stored_size}"
        race = Race("input", name, contestants, "pictures", arguments.batch_size, threads=1)
        yield PictureInput(race, len(pictures), seconds)


def our_reader(data: ImageDataModule) -> Contestant:
    """The loader's batches, varied and normalised as in training."""
    size = required(data.stored_size)
    normalize = Shape("", size, size, width=8, depth=1).encoder().normalize
    generator = torch.Generator().manual_seed(0)
    batches = endless(data.train_dataloader())

    def step() -> Tensor:
        return normalize(AUGMENTATION.vary(next(batches)["images"], size, generator))

    return Contestant("ours, 1 thread", step)


def torchvision_reader(pictures: Sequence[EncodedPicture], size: int, batch_size: int) -> Contestant:
    """The transforms of torchvision on PIL pictures in PyTorch's loader.

    Args:
        pictures: What to read.
        size: Pixels of a picture's side in a batch.
        batch_size: Pictures of a batch.
    """
    from torchvision import transforms

    alike = all(size_of(picture) == (size, size) for picture in pictures)
    steps = [] if alike else [transforms.Resize(size), transforms.CenterCrop(size)]
    steps += [
        transforms.RandomCrop(size, padding=AUGMENTATION.padding),
        transforms.RandomHorizontalFlip(AUGMENTATION.flip),
        transforms.ToTensor(),
        transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ]
    dataset = PilPictures(
        [picture.content for picture in pictures if picture.content is not None], transforms.Compose(steps)
    )
    batches = endless(DataLoader(dataset, batch_size, shuffle=True, drop_last=True))
    return Contestant("torchvision, 1 thread", lambda: next(batches))


def endless(loader: Any) -> Iterator:
    """A loader's batches, epoch after epoch."""
    for epoch in itertools.count():
        if hasattr(loader.batch_sampler, "set_epoch"):
            loader.batch_sampler.set_epoch(epoch)
        yield from loader
