"""Pictures and the captions of each: any number of columns, of texts or of lists of texts, and rows of one picture.

Some sources have a row for each caption and repeat the picture, so rows with the same picture are put together: else a
picture could be trained on with one caption and validated with another.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy
import pyarrow
import pyarrow.compute

from lit_pretrain.data.columns import columns_told, with_column
from lit_pretrain.data.disk_cache import FACTS, build_once
from lit_pretrain.data.images.image_folder import FOLDER, check_folder_labels
from lit_pretrain.data.images.image_source import EncodedPictures, ImageSource
from lit_pretrain.data.labelled.labelled_source import digest
from lit_pretrain.data.sources import check_column, open_source, source_name
from lit_pretrain.errors import UserError

CAPTION = "caption"
SAMPLE_CAPTIONS = ("name", "keywords")
# Rows whose pictures' bytes are held at a time.
ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Captions:
    """Captions of a source's rows, one after the other.

    Attributes:
        data: (C,) rows with the one column `caption`.
        rows: (C,) row of the source of each, ascending.
        fingerprint: Changes with the source's content and the columns, and with nothing else.
    """

    data: datasets.Dataset
    rows: numpy.ndarray
    fingerprint: str


def open_captions(source: ImageSource, columns: list[str] | None, cache_directory: Path) -> Captions:
    """Read the captions of a source of pictures.

    Args:
        source: The rows; those beyond its `max_pictures` are left out.
        columns: Of texts, of class labels (whose names are the captions), or of lists of these; null for the bundled
            sample's.
        cache_directory: Where tables are converted to.

    Raises:
        UserError: If a column is missing or holds no text, or none is named.
    """
    opened = open_source(source, cache_directory)
    data = opened.data
    if source.max_pictures is not None:
        data = data.select(range(min(source.max_pictures, len(data))))
    if columns is None:
        if source.path is not None or source.data_files is not None:
            raise UserError(
                f"It is not said which columns of {source_name(source)} hold captions (it has "
                f"{columns_told(opened)}): set data.caption_columns."
            )
        columns = list(SAMPLE_CAPTIONS)
    if not columns:
        raise UserError("data.caption_columns is empty: name at least one column of captions.")
    owners, texts = [], []
    for column in columns:
        check_folder_labels(opened, column, source_name(source))
        data = with_column(replace(opened, data=data), column)
        check_column(data, column, source_name(source), "data.caption_columns")
        table = data.select_columns([column]).with_format("arrow")[:]
        values = table.column(column).combine_chunks()
        classes = data.features[column]
        rows = numpy.arange(len(values))
        if is_list(values.type):
            rows = pyarrow.compute.list_parent_indices(values).to_numpy(zero_copy_only=False).astype(numpy.int64)
            values = pyarrow.compute.list_flatten(values)
            classes = getattr(classes, "feature", classes)
        if isinstance(classes, datasets.ClassLabel):
            values = names_of(values, classes)
        if not (pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)):
            raise UserError(
                f"The column '{column}' of {source_name(source)} holds {values.type}, neither texts nor class labels, "
                "nor lists of these: set data.caption_columns."
            )
        owners.append(rows)
        texts.append(values.cast(pyarrow.large_string()))
    rows = numpy.concatenate(owners)
    # Of each row, the columns in the order in which they are named.
    order = numpy.argsort(rows, kind="stable")
    captions = pyarrow.concat_arrays(texts).take(pyarrow.array(order))
    table = datasets.table.InMemoryTable(pyarrow.table({CAPTION: captions}))
    # Files beside pictures are not in the source's own fingerprint.
    content = hashlib.sha256("\0".join(text or "" for text in captions.to_pylist()).encode()).hexdigest()
    beside = [content] if opened.builder == FOLDER else []
    fingerprint = digest(opened.fingerprint, source.split, str(source.max_pictures), *columns, *beside)
    return Captions(datasets.Dataset(table), rows[order], fingerprint)


def names_of(values: pyarrow.Array, classes: datasets.ClassLabel) -> pyarrow.Array:
    """The classes of some rows as words, as zero-shot classification names them; null where a row has none."""
    names = pyarrow.array([name.replace("_", " ") for name in classes.names])
    valid = pyarrow.compute.greater_equal(values, 0)
    return names.take(pyarrow.compute.if_else(valid, values, None))


def is_list(kind: pyarrow.DataType) -> bool:
    """Whether values are lists, of whatever length."""
    types = pyarrow.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def find_or_make_keys(pictures: EncodedPictures, directory: Path) -> numpy.ndarray:
    """As `picture_keys`, from the disk if they are there: making them reads all pictures.

    Raises:
        UserError: If the disk is full.
    """
    kept = directory / pictures.fingerprint

    def build(partial: Path) -> None:
        partial.mkdir(parents=True)
        numpy.save(partial / "keys.npy", picture_keys(pictures))
        (partial / FACTS).write_text("{}\n")

    build_once(kept, build, "pictures' keys")
    return numpy.load(kept / "keys.npy")


def picture_keys(pictures: EncodedPictures) -> numpy.ndarray:
    """(N,) which picture each row of a source has, the number of the first row that has it.

    Rows have the same picture if their bytes are equal, or lead to the same file; files are not compared.
    """
    keys = numpy.empty(len(pictures), dtype=numpy.int64)
    numbers: dict[bytes | str | None, int] = {}
    for start in range(0, len(pictures), ROWS_AT_ONCE):
        for picture in pictures.read(range(start, min(start + ROWS_AT_ONCE, len(pictures)))):
            content = picture.content
            if isinstance(content, bytes):
                content = hashlib.blake2b(content, digest_size=16).digest()
            keys[picture.row] = picture.row if content is None else numbers.setdefault(content, picture.row)
    return keys
