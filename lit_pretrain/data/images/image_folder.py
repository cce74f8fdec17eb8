"""Folders of pictures as rows: with the names of their directories as classes, or with what a metadata table tells.

The builder of `datasets` does the same, at 0.2 ms a file in every run and without files that have a bracket in their
name; at a million files that matters.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow

from lit_pretrain.data.content_hash import content_hash
from lit_pretrain.data.file_reader import ending, without_bars
from lit_pretrain.data.notices import say_once
from lit_pretrain.data.sources import (
    TABLES,
    LocalFiles,
    OpenedSource,
    Source,
    read_tables,
    source_name,
)
from lit_pretrain.data.split_files import some
from lit_pretrain.errors import UserError
from lit_pretrain.required import required

FOLDER = "imagefolder"
COLUMN = "image"
LABELS = "label"
# What ends the name of a metadata table's column of files; what stands before it is the column's name in the rows.
FILE_NAME = "file_name"


def class_folder(file: str) -> str:
    """The name of the directory that a file lies in."""
    return os.path.basename(os.path.dirname(os.path.abspath(file)))


def nested_folders(files: Sequence[str]) -> tuple[str, str] | None:
    """A directory that holds pictures itself and another below it that does too, or null if there is no such pair."""
    folders = {os.path.dirname(os.path.abspath(file)) for file in files}
    for folder in sorted(folders):
        above = os.path.dirname(folder)
        while above != os.path.dirname(above):
            if above in folders:
                return above, folder
            above = os.path.dirname(above)
    return None


def folder_classes(files: Sequence[str]) -> list[str] | None:
    """The names of the directories of pictures, or null where one lies within another: which of them is a class?"""
    return None if nested_folders(files) else sorted({class_folder(file) for file in files})


def folder_rows(files: list[str], classes: list[str] | None) -> datasets.Dataset:
    """Pictures, and the names of their directories as their classes if there are any.

    Args:
        files: Their paths.
        classes: Names of the classes, which may be more than those of these pictures.
    """
    columns: dict[str, list[str]] = {COLUMN: files}
    features = datasets.Features({COLUMN: datasets.Image()})
    if classes is not None:
        columns[LABELS] = [class_folder(file) for file in files]
        features[LABELS] = datasets.ClassLabel(names=classes)
    return datasets.Dataset.from_dict(columns, features=features)


def check_folder_labels(opened: OpenedSource, column: str, source: str) -> None:
    """Raise `UserError` if the folders of pictures are to be their classes and cannot."""
    if opened.builder != FOLDER or column != LABELS or opened.data.column_names != [COLUMN]:
        return
    outer, inner = required(nested_folders(opened.files))
    raise UserError(
        f"Both {outer} and {inner} within it hold pictures of {source}, so whose name is a class is not clear: "
        "move them apart, or give the classes in a metadata.csv beside the pictures."
    )


def metadata_rows(source: Source, local_files: LocalFiles, files: list[str], cache_directory: Path) -> datasets.Dataset:
    """Pictures with what tables beside or above them tell, in the order of the tables.

    Rows of pictures that are not wanted are left out, and so are pictures without a row. A row whose picture is not
    there stays, where the picture should be: it is one that cannot be read.

    Args:
        source: What is read.
        local_files: With tables called metadata.csv, metadata.jsonl or metadata.parquet.
        files: The pictures that are wanted, those of a split.
        cache_directory: Where tables are converted to.

    Raises:
        UserError: If a table cannot be read, names no pictures or others than its own, or tables have other columns.
    """
    files_to_find, tables = {os.path.normpath(file) for file in files}, local_files.metadata
    folders = {os.path.dirname(file) for file in files_to_find} if local_files.splits else None
    read = [metadata_table(source, table, files_to_find, folders, cache_directory) for table in tables]
    rowless = len(files_to_find - {path for _, paths in read for path in paths})
    if rowless:
        say_once(
            f"{rowless} of the {len(files_to_find)} pictures of {source_name(source)} have no row in {some(tables)}: "
            "left out."
        )
    parts = [part for part, _ in read if len(part)] or [read[0][0]]
    try:
        with without_bars():
            return datasets.concatenate_datasets(parts)
    except (ValueError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"The tables {some(tables)} do not have the same columns ({reason}): give them the same ones."
        ) from error


def metadata_table(
    source: Source, table: str, files_to_find: set[str], folders: set[str] | None, cache_directory: Path
) -> tuple[datasets.Dataset, list[str | None]]:
    """The rows of one table that lead to wanted pictures, or, in their folders, to none; and all that it names."""
    builder = TABLES[ending(table)]
    local = LocalFiles(builder, {source.split: [table]}, source.options(builder, [table]))
    data = read_tables(source, local, content_hash([table], cache_directory), cache_directory)
    named = [name for name in data.column_names if name == FILE_NAME or name.endswith(f"_{FILE_NAME}")]
    if not named:
        raise UserError(
            f"{table} does not say which pictures it describes (its columns are {', '.join(data.column_names)}): call "
            f"the column of their names {FILE_NAME}, or give the table another name."
        )
    paths = {name: [path_of(table, value) for value in data[name]] for name in named}
    first = paths[named[0]]
    rows = [row for row, path in enumerate(first) if path in files_to_find or belongs(path, folders)]
    columns = {
        name.removesuffix(FILE_NAME).removesuffix("_") or COLUMN: [paths[name][row] for row in rows] for name in named
    }
    features = datasets.Features({name: datasets.Image() for name in columns})
    pictures = datasets.Dataset.from_dict(columns, features=features)
    others = data.select(rows).remove_columns(named)
    if not others.column_names:
        return pictures, first
    with without_bars():
        return datasets.concatenate_datasets([pictures, others], axis=1), first


def belongs(path: str | None, folders: set[str] | None) -> bool:
    """Whether a picture is missing from some folders, or, where these are null, from anywhere."""
    if path is not None and folders is not None and os.path.dirname(path) not in folders:
        return False
    return path is None or not os.path.exists(path)


def path_of(table: str, name: str | None) -> str | None:
    """The path of a file that a table names, which must be in the table's own directory or below it.

    Raises:
        UserError: If it is elsewhere.
    """
    if name is None:
        return None
    inner = os.path.normpath(name)
    if os.path.isabs(name) or inner.split(os.sep)[0] == os.pardir or "://" in name:
        raise UserError(f"{table} names '{name}', which is not below its own directory: give paths relative to that.")
    return os.path.normpath(os.path.join(os.path.dirname(table), inner))
