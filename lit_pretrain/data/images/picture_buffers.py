"""Pictures of a stream: those of a buffer are held as they are encoded, and decoded when a batch is made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch

from lit_pretrain.data.images.decoding import find_square
from lit_pretrain.data.images.image_cache import Corrupt
from lit_pretrain.data.images.image_dataset import ImageDataset
from lit_pretrain.data.images.image_folder import COLUMN, FOLDER
from lit_pretrain.data.images.image_reader import ImageReader
from lit_pretrain.data.images.image_source import EncodedPictures, ImageSource
from lit_pretrain.data.images.image_store import StorageSettings
from lit_pretrain.data.images.pictures import EncodedPicture, Square
from lit_pretrain.data.sources import source_name
from lit_pretrain.data.stream_order import StreamedRow
from lit_pretrain.data.stream_source import Row, StreamedRows, check_columns, column_of
from lit_pretrain.errors import UserError

# A sample's id is its shard and its row.
ROWS = 2**32


class BufferedPictures(EncodedPictures):
    """Some rows' pictures, answering as those of a whole source do.

    Args:
        rows: The stream that they are of.
        held: The rows.
        column: The one of pictures.
    """

    def __init__(self, rows: StreamedRows, held: Sequence[StreamedRow], column: str) -> None:
        # Not by the base's, which holds a data set.
        self.held, self.column, self.root, self.source = held, column, rows.root, rows.source
        self.fingerprint, self.labels = rows.fingerprint, None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.held)

    def read(self, rows: Sequence[int]) -> list[EncodedPicture]:
        """The pictures at some places of the buffer."""
        return [self._held(place, self.held[place]) for place in rows]

    def file_names(self, rows: Sequence[int]) -> list[str]:
        """The names of some pictures' files, empty where they have none."""
        return [name_of(column_of(self.held[place].values, self.column)) for place in rows]

    def _held(self, place: int, row: StreamedRow) -> EncodedPicture:
        picture = self._encoded(place, column_of(row.values, self.column))
        if isinstance(picture.content, str):
            return picture
        name = name_of(column_of(row.values, self.column))
        return replace(picture, name=f"row {row.row} of shard {row.shard}" + (f" ({name})" if name else ""))


def name_of(value: Any) -> str:
    """The name of a picture's file in a row, empty where it has none."""
    name = value.get("path") if isinstance(value, dict) else value
    return name if isinstance(name, str) else ""


class BufferReader(ImageReader):
    """As `ImageReader`, of a buffer: what is known of the pixels of the whole is told to it.

    Args:
        pictures: The buffer's.
        square: What they become.
        corrupt: Whether damaged pictures are an error, or replaced by others of the buffer.
        facts: What is known of the pixels.
    """

    def __init__(self, pictures: BufferedPictures, square: Square, corrupt: Corrupt, facts: dict[str, Any]) -> None:
        self.pictures, self.square, self.corrupt, self.facts = pictures, square, corrupt, facts
        self.rows = sample_ids(pictures.held)
        self.damaged = torch.zeros(len(pictures), dtype=torch.bool)


def sample_ids(rows: Sequence[StreamedRow]) -> numpy.ndarray:
    """(N,) where each row is from."""
    return numpy.array([row.shard * ROWS + row.row for row in rows], dtype=numpy.int64)


@dataclass(frozen=True)
class PictureBuffers:
    """Makes pictures of a buffer's rows.

    Attributes:
        rows: The stream.
        column: The one of pictures.
        square: What they become.
        corrupt: What becomes of damaged ones.
        facts: What is known of the pixels.
    """

    rows: StreamedRows
    column: str
    square: Square
    corrupt: Corrupt
    facts: dict[str, Any]

    @property
    def least(self) -> int:
        """Any will do."""
        return 1

    def store(self, rows: Sequence[StreamedRow]) -> BufferReader:
        """What gives the pixels of some rows."""
        return BufferReader(BufferedPictures(self.rows, rows, self.column), self.square, self.corrupt, self.facts)

    def make(self, rows: Sequence[StreamedRow], seed: int) -> ImageDataset:
        """The pictures of a buffer; they draw nothing."""
        return ImageDataset(self.store(rows), numpy.arange(len(rows)))

    def join(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch of the ends of two buffers."""
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def settings(self) -> dict[str, Any]:
        """What the pictures of a buffer depend on beside its rows."""
        return {"data.image_column": self.column, "data.stored_size": self.square.side, "data.corrupt": self.corrupt}

    def picture(self, sample: int) -> EncodedPicture:
        """The picture of a sample id, read again."""
        return BufferedPictures(self.rows, [self.row(sample)], self.column).read([0])[0]

    def row(self, sample: int) -> StreamedRow:
        """The row of a sample id, read again."""
        shard, row = divmod(int(sample), ROWS)
        return StreamedRow(0, shard, row, next(self.rows.read(shard, row))[1])


def picture_column(rows: StreamedRows, row: Row, source: ImageSource) -> str:
    """The column of pictures: the one that was named, or the only one.

    Raises:
        UserError: If there is none, or it is not clear which.
    """
    if rows.builder == FOLDER and source.image_column not in row:
        return COLUMN
    if source.image_column is not None:
        value = column_of(row, source.image_column)
        check_columns(row, [source.image_column], source_name(source), "data.image_column", [value])
        return source.image_column
    names = [name for name, value in row.items() if isinstance(value, dict) and set(value) == {"bytes", "path"}]
    if len(names) == 1:
        return names[0]
    problem = f"several columns of pictures ({', '.join(names)})" if names else "no column of pictures"
    raise UserError(
        f"{source_name(source)} has {problem} among {', '.join(row)}: set data.image_column to one of encoded pictures "
        "or of file names."
    )


def open_buffers(
    rows: StreamedRows, first: Sequence[StreamedRow], source: ImageSource, storage: StorageSettings
) -> tuple[PictureBuffers, ImageReader]:
    """What makes pictures of a stream's rows, by those that are looked at first, and what gives the pixels of these.

    Args:
        rows: The stream.
        first: Its first rows.
        source: Where it is from.
        storage: How pictures are kept.

    Raises:
        UserError: If some are damaged that may not be, sizes differ that must not, or none can be read.
    """
    pictures = BufferedPictures(rows, first, picture_column(rows, first[0].values, source))
    square = find_square(pictures, storage.stored_size)
    store = ImageReader(pictures, square, storage.corrupt)
    store.rows = sample_ids(first)
    return PictureBuffers(rows, pictures.column, square, storage.corrupt, store.facts), store
