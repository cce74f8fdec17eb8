"""Many pictures decoded in threads, block by block, in order: Pillow works outside Python's lock."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy

from lit_pretrain.data.images.image_source import EncodedPictures
from lit_pretrain.data.images.picture_statistics import PictureStatistics
from lit_pretrain.data.images.pictures import EncodedPicture, Square, UnreadablePictureError, decode, size_of
from lit_pretrain.errors import UserError

# Pictures that are decoded at a time by a thread.
BLOCK = 32


@dataclass(frozen=True)
class Block:
    """Some pictures, decoded.

    Attributes:
        images: (N, 3, S, S) uint8.
        rows: Their rows in the source.
        statistics: Of their pixels.
        unreadable: What is said of pictures that could not be read.
        seen: Pictures, readable or not.
    """

    images: numpy.ndarray
    rows: list[int]
    statistics: PictureStatistics
    unreadable: list[str]
    seen: int


def decode_block(pictures: list[EncodedPicture], square: Square) -> Block:
    """Decode some pictures, leaving out those that cannot be read."""
    images = numpy.empty((len(pictures), 3, square.side, square.side), dtype=numpy.uint8)
    rows: list[int] = []
    unreadable: list[str] = []
    for picture in pictures:
        try:
            images[len(rows)] = decode(picture, square)
            rows.append(picture.row)
        except UnreadablePictureError as error:
            unreadable.append(str(error))
    images = images[: len(rows)]
    return Block(images, rows, PictureStatistics.of(images), unreadable, len(pictures))


def decode_blocks(
    pictures: EncodedPictures, rows: Sequence[int], square: Square, threads: int | None = None
) -> Iterator[Block]:
    """Decode rows in order; only one block a thread, and one more, is held at a time.

    Args:
        pictures: Where they come from.
        rows: Which ones.
        square: What they become.
        threads: How many work at it; null takes one a core.
    """
    threads = threads or cores()
    ahead: deque[Future[Block]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for start in range(0, len(rows), BLOCK):
                ahead.append(pool.submit(decode_block, pictures.read(rows[start : start + BLOCK]), square))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def find_square(pictures: EncodedPictures, stored_size: int | None) -> Square:
    """What the pictures become: squares of the size that was asked for, or of the size that they have.

    Args:
        pictures: Where they come from; only headers are read, up to the first readable picture.
        stored_size: Pixels of a side, or null for their own size, which must be the same for all.

    Raises:
        UserError: If the first pictures are not square, or no picture can be read.
    """
    if stored_size is not None:
        return Square(stored_size)
    unreadable: list[str] = []
    for start in range(0, len(pictures), BLOCK):
        sizes: dict[tuple[int, int], str] = {}
        for picture in pictures.read(range(start, min(start + BLOCK, len(pictures)))):
            try:
                sizes.setdefault(size_of(picture), picture.name)
            except UnreadablePictureError as error:
                unreadable.append(str(error))
        if not sizes:
            continue
        (width, height), name = next(iter(sizes.items()))
        if width == height and len(sizes) == 1:
            return Square(width, like=name)
        examples = ", ".join(f"{name} is {width}x{height}" for (width, height), name in list(sizes.items())[:2])
        difference = "differ in size" if len(sizes) > 1 else "are not square"
        raise UserError(
            f"The pictures {difference} ({examples}): set data.stored_size to the pixels of a side of the squares to "
            "keep."
        )
    raise no_readable(pictures, unreadable)


def no_readable(pictures: EncodedPictures, unreadable: list[str]) -> UserError:
    """What is said if no picture can be read."""
    return UserError(
        f"None of the {len(pictures)} pictures of {pictures.source} can be read ({unreadable[0]}): check "
        "data.image_column and the files."
    )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
