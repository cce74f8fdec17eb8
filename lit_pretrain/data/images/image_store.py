"""A source's pictures made ready: kept decoded if they fit, else decoded whenever they are asked for."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy

from lit_pretrain.data.disk_cache import FACTS
from lit_pretrain.data.images.decoding import find_square
from lit_pretrain.data.images.image_cache import Corrupt, image_fingerprint, naming, open_or_build, unreadable_list
from lit_pretrain.data.images.image_dataset import ImageDataset, ImageStore, keys_of
from lit_pretrain.data.images.image_reader import ImageReader
from lit_pretrain.data.images.image_source import EncodedPictures, ImageSource, open_pictures
from lit_pretrain.data.images.pictures import Square
from lit_pretrain.data.labelled.labels import Labels, check_classes, with_classes
from lit_pretrain.data.notices import say
from lit_pretrain.required import required


@dataclass(frozen=True)
class StorageSettings:
    """How pictures are kept; see `ImageDataModule` for the fields."""

    stored_size: int | None
    cache: bool | None
    cache_gigabytes: float
    corrupt: Corrupt
    directory: Path


@dataclass(frozen=True)
class StoredPictures:
    """A source's pictures, ready to be gathered.

    Attributes:
        source: What a person knows it by.
        store: Gives the pixels.
        square: What the pictures became.
        fingerprint: Changes with the pixels and with nothing else.
        labels: Labels by row of the source, or null.
        encoded: The pictures as they lie in the source.
    """

    source: str
    store: ImageStore
    square: Square
    fingerprint: str
    labels: Labels | None
    encoded: EncodedPictures

    @property
    def total(self) -> int:
        """Rows of the source."""
        return len(self.encoded)

    @property
    def cached(self) -> bool:
        """Whether the pictures are kept decoded."""
        return not isinstance(self.store, ImageReader)

    def places(self, rows: numpy.ndarray) -> numpy.ndarray:
        """(M,) places in the store of those rows that are there."""
        return numpy.flatnonzero(numpy.isin(self.store.rows, rows))

    def keys(self, rows: numpy.ndarray) -> numpy.ndarray | None:
        """(M,) integers of some rows that are there, equal for equal pixels; null where they are not kept decoded."""
        return keys_of(self.dataset(self.places(rows)))

    def dataset(self, places: numpy.ndarray | None = None) -> ImageDataset:
        """Some pictures as a data set, or all."""
        places = numpy.arange(len(self.store.rows)) if places is None else places
        return ImageDataset(self.store, places, self.labels.values if self.labels is not None else None)


def store_pictures(
    source: ImageSource, settings: StorageSettings, like: StoredPictures | None = None
) -> StoredPictures:
    """Open a source and make its pictures ready.

    Args:
        source: What to read.
        settings: How they are kept.
        like: Pictures whose size and classes these must have, for a test set.

    Raises:
        UserError: If anything of this cannot be done.
    """
    pictures = open_pictures(source, settings.directory / "huggingface")
    labels = pictures.labels
    if labels is not None and like is not None:
        labels = with_classes(labels, required(like.labels).classes)
    elif labels is not None:
        check_classes(labels)
    square = like.square if like is not None else find_square(pictures, settings.stored_size)
    fingerprint = image_fingerprint(pictures, square, settings.corrupt)
    directory = settings.directory / "pictures" / fingerprint
    store: ImageStore
    if keep_decoded(pictures, square, settings, directory):
        store = open_or_build(pictures, square, settings.corrupt, directory)
        if store.skipped:
            unreadable = unreadable_list(directory).read_text().splitlines()
            say(f"{naming(unreadable, len(pictures), pictures.source, unreadable_list(directory))}: left out.")
    else:
        store = ImageReader(pictures, square, settings.corrupt)
    return StoredPictures(pictures.source, store, square, fingerprint, labels, pictures)


def keep_decoded(pictures: EncodedPictures, square: Square, settings: StorageSettings, directory: Path) -> bool:
    """Whether to keep the pictures decoded: as asked, else if they are there or there is room for them."""
    if settings.cache is not None:
        return settings.cache
    if (directory / FACTS).is_file():
        return True
    size = len(pictures) * 3 * square.side**2
    settings.directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.directory).free
    if size <= settings.cache_gigabytes * 1e9 and size < free:
        return True
    reason = "data.cache_gigabytes" if size > settings.cache_gigabytes * 1e9 else f"the disk of {settings.directory}"
    say(
        f"Decoded, the pictures of {pictures.source} are {size / 1e9:.1f} GB, too much for {reason}: they are decoded "
        "anew in every epoch (data.workers processes do it; data.cache true keeps them all the same)."
    )
    return False
