"""Columns that are no columns of their own: parts of others ("json.caption"), and files beside pictures ("txt").

Tar shards of webdataset's form have a column for each ending, so that a shard and the folder that it was made of are
named alike: `txt` is the text beside a picture, `json.caption` what the json beside it says by that key.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import pyarrow
import pyarrow.compute
import pyarrow.csv

from lit_pretrain.data.file_reader import without_bars
from lit_pretrain.data.images.image_folder import COLUMN, FOLDER
from lit_pretrain.data.sources import OpenedSource
from lit_pretrain.errors import UserError


def with_column(opened: OpenedSource, column: str) -> datasets.Dataset:
    """A source's rows, with a column made of another or of files if it has none of that name.

    Args:
        opened: The source.
        column: Its name; where nothing makes it, the rows are returned as they are.

    Raises:
        UserError: If a file beside a picture cannot be read.
    """
    data = opened.data
    outer, *keys = column.split(".")
    if column in data.column_names:
        return data
    if keys and outer in data.column_names:
        values = inner_values(data, outer, keys)
    elif opened.builder == FOLDER and COLUMN in data.column_names:
        values = values_beside(paths_of_pictures(data), outer, keys)
    else:
        values = None
    if values is None:
        return data
    added = datasets.Dataset(datasets.table.InMemoryTable(pyarrow.table({column: values})))
    with without_bars():
        return datasets.concatenate_datasets([data, added], axis=1)


def inner_values(data: datasets.Dataset, outer: str, keys: Sequence[str]) -> pyarrow.ChunkedArray | None:
    """What a column of structures, lists of these, or texts of json holds by some keys; null if it lacks them."""
    values = data.select_columns([outer]).with_format("arrow")[:].column(outer)
    if pyarrow.types.is_struct(values.type):
        try:
            return pyarrow.compute.struct_field(values, list(keys))
        except pyarrow.ArrowException:
            # A list within, perhaps.
            pass
    kinds = pyarrow.types.is_struct, pyarrow.types.is_list, pyarrow.types.is_large_list
    texts = pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)
    if not texts and not any(is_kind(values.type) for is_kind in kinds):
        return None
    try:
        inner = [value_at(json.loads(one) if texts and one else one, keys) for one in values.to_pylist()]
        return (
            pyarrow.chunked_array([pyarrow.array(inner)]) if any(value not in (None, []) for value in inner) else None
        )
    except (ValueError, pyarrow.ArrowException):
        return None


def value_at(content: Any, keys: Sequence[str]) -> Any:
    """What structures within structures hold, or null; of a list, what each of its structures does that has it."""
    if not keys:
        return content
    if isinstance(content, list):
        values = [value_at(one, keys) for one in content]
        return [value for value in values if value is not None]
    return value_at(content.get(keys[0]), keys[1:]) if isinstance(content, dict) else None


def values_beside(paths: Sequence[str | None], ending: str, keys: Sequence[str]) -> pyarrow.ChunkedArray | None:
    """What the files say that are called as pictures are but for their ending; null where there is none at all.

    Raises:
        UserError: If one cannot be read.
    """

    def read(path: str | None) -> Any:
        neighbour = f"{os.path.splitext(path)[0]}.{ending}" if path is not None else ""
        try:
            with open(neighbour, encoding="utf-8-sig") as file:
                text = file.read()
            return value_at(json.loads(text), keys) if keys else text.strip()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{neighbour} cannot be read ({error}): repair it, or leave the picture out.") from error

    with ThreadPoolExecutor() as pool:
        values = list(pool.map(read, paths))
    if all(value is None for value in values):
        return None
    try:
        return pyarrow.chunked_array([pyarrow.array(values)])
    except pyarrow.ArrowException as error:
        name = ".".join([ending, *keys])
        raise UserError(f"The values of {name} beside the pictures are of several kinds ({error}).") from error


def paths_of_pictures(data: datasets.Dataset) -> list[str | None]:
    """The paths of a folder's pictures."""
    values = data.select_columns([COLUMN]).with_format("arrow")[:].column(COLUMN)
    return pyarrow.compute.struct_field(values, "path").to_pylist()


def padded_numbers(opened: OpenedSource, column: str) -> str | None:
    """A cell such as 007 that became a number by being read, from the beginning of a csv; null if there is none."""
    if opened.builder != "csv" or not str(getattr(opened.data.features.get(column), "dtype", "")).startswith("int"):
        return None
    try:
        cells = pyarrow.csv.open_csv(
            opened.files[0],
            pyarrow.csv.ReadOptions(encoding=opened.options.get("encoding", "utf8")),
            pyarrow.csv.ParseOptions(delimiter=opened.options.get("sep", ",")),
            pyarrow.csv.ConvertOptions(include_columns=[column], column_types={column: pyarrow.string()}),
        ).read_next_batch()[0]
    except (pyarrow.ArrowException, OSError, StopIteration):
        return None
    return next((cell for cell in cells.to_pylist() if cell and str(int(cell)) != cell.strip()), None)


def columns_told(opened: OpenedSource) -> str:
    """A source's columns as a person may name them, with what lies beside its pictures."""
    names = list(opened.data.column_names)
    if opened.builder == FOLDER and opened.files:
        stem = os.path.splitext(opened.files[0])[0]
        names += [f"{ending} (beside the pictures)" for ending in ("txt", "json") if os.path.exists(f"{stem}.{ending}")]
    return ", ".join(names)
