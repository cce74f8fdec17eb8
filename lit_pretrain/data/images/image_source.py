"""Pictures from any source, still encoded: a folder, tables of pictures or of file names, a data set of the hub."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pyarrow
import pyarrow.compute
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from lit_pretrain.data.columns import with_column
from lit_pretrain.data.content_hash import checked_once, content_hash, folder_hash, names_below
from lit_pretrain.data.file_reader import read_split
from lit_pretrain.data.images.image_folder import (
    FOLDER,
    check_folder_labels,
    folder_classes,
    folder_rows,
    metadata_rows,
)
from lit_pretrain.data.images.pictures import EncodedPicture
from lit_pretrain.data.labelled.labels import Labels, read_labels
from lit_pretrain.data.shards import SHARDS, check_shards, shard_features
from lit_pretrain.data.sources import (
    TABLES,
    LocalFiles,
    OpenedSource,
    Source,
    check_column,
    no_rows,
    open_source,
    source_name,
)
from lit_pretrain.errors import UserError

# Files of one name and different endings in a shard are a row, a column each.
ARCHIVES = {".tar": SHARDS}


@dataclass(frozen=True)
class ImageSource(Source):
    """Where pictures come from; see `ImageDataModule` for the fields."""

    image_column: str | None = None
    label_column: str | None = None
    max_pictures: int | None = None

    builders: ClassVar[dict[str, str]] = dict.fromkeys(ImageFolder.EXTENSIONS, FOLDER) | TABLES | ARCHIVES
    sample: ClassVar[str] = "emoji"
    needed: ClassVar[str] = "at least one picture"
    kinds: ClassVar[str] = f"pictures such as .jpg and .png, or {', '.join(sorted(TABLES | ARCHIVES))}"

    def builder_of(self, kinds: set[str]) -> str | None:
        """In a folder of pictures, tables that are no picture formats of `datasets` tell about them."""
        if FOLDER in kinds and kinds <= {FOLDER, "csv", "json"}:
            return FOLDER
        return super().builder_of(kinds)

    def read(self, local_files: LocalFiles, content: str, cache_directory: Path) -> datasets.Dataset:
        """Of a folder, its pictures as `image_folder.py` has them."""
        if local_files.builder == SHARDS:
            check_shards(local_files.all_files)
            try:
                return super().read(local_files, content, cache_directory)
            except UserError:
                # Perhaps only because samples do not all have the same files, a caption being missing, say.
                local_files = replace(
                    local_files, options=local_files.options | {"features": shard_features(local_files.all_files)}
                )
        if local_files.builder != FOLDER:
            return super().read(local_files, content, cache_directory)
        if local_files.metadata:
            rows = {
                split: metadata_rows(self, local_files, files, cache_directory)
                for split, files in local_files.files.items()
            }
        else:
            classes = folder_classes(local_files.all_files)
            rows = {split: folder_rows(files, classes) for split, files in local_files.files.items()}
        return read_split(rows, self.split)

    def content(self, local_files: LocalFiles, cache_directory: Path) -> str:
        """Of a folder, the names below it and what tells about them: pictures are hashed by `open_pictures`."""
        if local_files.builder != FOLDER:
            return super().content(local_files, cache_directory)
        names = hashlib.sha256(
            "\n".join(names_below(local_files.all_files)).encode(errors="surrogateescape")
        ).hexdigest()
        return f"{FOLDER}:{names}:{content_hash(local_files.metadata, cache_directory) if local_files.metadata else ''}"


class EncodedPictures:
    """A source's pictures, row by row.

    Args:
        data: Rows with the column of pictures.
        column: Its name.
        root: Directory that relative file names start from, if they are found there; else the current one.
        source: What a person knows the source by.
        fingerprint: Changes with the pictures' bytes and order, and with nothing else.
        labels: Their labels, if a column was named.
    """

    def __init__(
        self,
        data: datasets.Dataset,
        column: str,
        root: Path | None,
        source: str,
        fingerprint: str,
        labels: Labels | None = None,
    ) -> None:
        self.data, self.column, self.root = data, column, root
        self.source, self.fingerprint, self.labels = source, fingerprint, labels

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.data)

    def read(self, rows: Sequence[int]) -> list[EncodedPicture]:
        """Some rows' pictures; fastest for a `range`."""
        return [self._encoded(row, value) for row, value in zip(rows, self.data[rows][self.column], strict=True)]

    def file_names(self, rows: Sequence[int]) -> list[str]:
        """The names of some rows' files as the source has them, empty where it has none."""
        values = self.data.with_format("arrow")[rows].column(self.column)
        if pyarrow.types.is_struct(values.type):
            values = pyarrow.compute.struct_field(values, "path")
        elif not (pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)):
            return [""] * len(values)
        return [name or "" for name in values.to_pylist()]

    def _encoded(self, row: int, value: dict | bytes | str | None) -> EncodedPicture:
        content: Any = value
        path = None
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
            if content is None and path is not None:
                content = path
        if isinstance(content, str):
            content = located(content, self.root)
            return EncodedPicture(row, content, content)
        return EncodedPicture(row, f"row {row} ({path})" if path else f"row {row}", content)


def open_pictures(source: ImageSource, cache_directory: Path) -> EncodedPictures:
    """Open a source of pictures.

    Args:
        source: What to read.
        cache_directory: Where tables are converted to.

    Raises:
        UserError: If a file, a split or a column is missing, the columns hold no pictures or no labels, it is not
            clear which column holds the pictures, or there is no row.
    """
    opened = open_source(source, cache_directory)
    data = opened.data
    if opened.builder == FOLDER and source.image_column not in data.column_names:
        # Its column has our name, whatever pictures are called in the table that a model was trained on.
        source = replace(source, image_column=None)
    if source.max_pictures is not None:
        data = data.select(range(min(source.max_pictures, len(data))))
    if len(data) == 0:
        raise no_rows(source)
    column = picture_column(data, source)
    labels = None
    if source.label_column is not None:
        check_folder_labels(opened, source.label_column, source_name(source))
        labelled = with_column(replace(opened, data=data), source.label_column)
        labels = read_labels(labelled, source.label_column, source_name(source))
    data = data.select_columns([column])
    if isinstance(data.features[column], datasets.Image):
        # The bytes as they are: decoding is ours, so that damaged pictures are ours to name.
        data = data.cast_column(column, datasets.Image(decode=False))
    root = Path(opened.files[0]).parent if opened.files else None
    # Of a folder nothing but its pictures, so that other labels or captions do not have them decoded again.
    rows = FOLDER if opened.builder == FOLDER else opened.fingerprint
    parts = [rows, files_fingerprint(data, column, root, opened, cache_directory)]
    parts += [source.split, column, str(source.max_pictures)]
    fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return EncodedPictures(data, column, root, source_name(source), fingerprint, labels)


def picture_column(data: datasets.Dataset, source: ImageSource) -> str:
    """The column of pictures: the one that was named, or the only one."""
    names = [name for name, feature in data.features.items() if is_picture(feature)]
    if source.image_column is None:
        if len(names) == 1:
            return names[0]
        columns = ", ".join(names or data.column_names)
        problem = f"several columns of pictures ({columns})" if names else f"no column of pictures (it has {columns})"
        hint = "one of them" if names else "the column of encoded pictures or of file names"
        raise UserError(f"{source_name(source)} has {problem}: set data.image_column to {hint}.")
    column = source.image_column
    check_column(data, column, source_name(source), "data.image_column")
    feature = data.features[column]
    if column not in names and getattr(feature, "dtype", None) not in (
        "string",
        "large_string",
        "binary",
        "large_binary",
    ):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise UserError(
            f"The column '{column}' of {source_name(source)} holds {kind}, neither pictures nor file names: set "
            "data.image_column."
        )
    return column


def is_picture(feature: object) -> bool:
    """Whether a column is one of pictures, by its type or by the fields that pictures have in tables."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def files_fingerprint(
    data: datasets.Dataset, column: str, root: Path | None, opened: OpenedSource, cache_directory: Path
) -> str:
    """Hash of the files that rows lead to, which may change while the rows stay; a hub's files are its own."""
    names = [] if opened.fingerprint.startswith("hub:") else paths_of(data, column)
    if not names:
        return "0:"

    def look() -> str:
        paths = [located(name, root) for name in names]
        present = [path for path in paths if os.path.isfile(path)]
        return f"{len(paths)}:{folder_hash(present, cache_directory) if present else ''}"

    key = hashlib.sha256("\n".join([os.path.abspath(root or "."), *names]).encode(errors="surrogateescape"))
    return checked_once(key.hexdigest(), cache_directory, look)


def paths_of(data: datasets.Dataset, column: str) -> list[str]:
    """Paths of the pictures that are files of their own."""
    values = data.with_format("arrow")[:].column(column)
    if pyarrow.types.is_struct(values.type):
        files = pyarrow.compute.is_null(pyarrow.compute.struct_field(values, "bytes"))
        values = pyarrow.compute.struct_field(values, "path").filter(files)
    elif not (pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)):
        return []
    return values.drop_null().to_pylist()


def located(path: str, root: Path | None) -> str:
    """A relative path below `root` if there is such a file; any other as it is."""
    if root is not None and not os.path.isabs(path):
        below = os.path.join(root, path)
        if os.path.exists(below):
            return below
    return path
