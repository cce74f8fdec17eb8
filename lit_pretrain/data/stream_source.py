"""Rows of a source that are read as they are needed, from any place on: Hugging Face iterable data sets.

Its shards are files, row groups of parquet files, tar shards; a place is a shard and a row within it. Of a shard whose
middle is asked for the rows before are passed over, of other shards nothing is read.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import fsspec
from datasets.data_files import DataFilesDict, DataFilesList

from lit_pretrain.data.columns import value_at
from lit_pretrain.data.file_reader import address_safe, is_compressed, without_bars
from lit_pretrain.data.hub_source import load_from_hub, load_remote
from lit_pretrain.data.images.image_folder import FOLDER
from lit_pretrain.data.shards import SHARDS, check_shards, shard_features
from lit_pretrain.data.sources import (
    LocalFiles,
    Source,
    local_files,
    no_rows,
    remote_files,
    saved_rows,
    source_name,
    split_names,
)
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.required import required

Row = dict[str, Any]
# Fewer shards than this are split further, where their files have parts that can be read by themselves.
FEW_SHARDS = 256
# Rows that are taken out of a shard at a time, and shards that rows on the disk are dealt out to.
AT_ONCE, DISK_SHARDS = 64, 64


@dataclass(frozen=True)
class StreamedRows:
    """A source's rows.

    Attributes:
        parts: The iterable data sets, one after the other; each has shards.
        source: What a person knows the source by.
        fingerprint: Changes with names and sizes of the files, which are not read for it.
        builder: What reads local files, or null.
        root: Directory that relative file names start from, or null.
    """

    parts: tuple[datasets.IterableDataset, ...]
    source: str
    fingerprint: str
    builder: str | None = None
    root: Path | None = None

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return sum(part.num_shards for part in self.parts)

    def read(self, shard: int, row: int = 0) -> Iterator[tuple[int, Row]]:
        """Rows of a shard from a place on, with their places.

        Raises:
            UserError: If the shard cannot be read.
        """
        part, index = self._place(shard)
        # Of a network's connections a forked process must not take its parent's locks.
        fsspec.asyn.reset_lock()
        try:
            rows = part.shard(part.num_shards, index)
            # By `iter`: in a worker of torch's loader an iterable data set gives each worker other shards.
            for batch in (rows.skip(row) if row else rows).iter(AT_ONCE):
                for values in zip(*batch.values(), strict=True):
                    yield row, dict(zip(batch, values, strict=True))
                    row += 1
        except UserError:
            raise
        except Exception as error:  # each format and protocol fails in its own way
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{self.source} cannot be read on, in shard {shard} from row {row} ({reason}): repair the file, or "
                "look after the network, and go on from the last checkpoint."
            ) from error

    def _place(self, shard: int) -> tuple[datasets.IterableDataset, int]:
        """The data set that a shard is of, and its number there."""
        for part in self.parts:
            if shard < part.num_shards:
                return part, shard
            shard -= part.num_shards
        raise IndexError(shard)


def open_stream(source: Source, cache_directory: Path) -> StreamedRows:
    """Open a source of any kind without reading it.

    Args:
        source: What to read.
        cache_directory: For what little has to be written, as the list of a folder's files.

    Raises:
        UserError: If a file, a data set or a split is missing, or a part of a split is asked for.
    """
    names = split_names(source)
    if any(mark in source.split for mark in "[("):
        raise UserError(
            f"{source.setting('split')} is '{source.split}', and how many rows a stream has is not known: give whole "
            "splits, or set data.streaming to false."
        )
    if source.path is not None and (saved := saved_rows(source)) is not None:
        return StreamedRows((shared_out(saved),), source_name(source), f"saved:{saved._fingerprint}")
    local = local_files(source)
    if local is not None:
        return open_local(source, local, names, cache_directory)
    remote = remote_files(source)
    if remote is not None:
        builder, addresses, options = remote
        opened = [load_remote(builder, addresses, options, names[0], source.setting("path"), streaming=True)]
        content = json.dumps([builder, addresses, options], sort_keys=True, default=str)
    else:
        path, files, setting = required(source.path), source.data_files, source.setting("path")
        opened = [load_from_hub(path, source.name, files, name, setting, streaming=True) for name in names]
        content = json.dumps([source.path, source.name, source.data_files, source.split])
    return StreamedRows(tuple(map(resharded, opened)), source_name(source), named("stream", content))


def open_local(source: Source, local: LocalFiles, names: list[str], cache_directory: Path) -> StreamedRows:
    """As `open_stream`, of files that are here."""
    files = local.all_files
    if not files:
        raise no_rows(source)
    states = [f"{os.path.abspath(file)}:{os.stat(file).st_size}" for file in files]
    fingerprint = named("files", json.dumps([local.builder, local.options, states], sort_keys=True, default=str))
    root = Path(files[0]).parent
    if local.builder == FOLDER:
        # Its list of names is what is read; pictures are opened when their turn comes.
        listed = source.read(local, source.content(local, cache_directory), cache_directory)
        if len(listed) == 0:
            raise no_rows(source)
        return StreamedRows((shared_out(listed),), source_name(source), fingerprint, FOLDER, root)
    if local.builder == SHARDS:
        check_shards([file for file in files if not is_compressed(file)])
    parts = []
    for name in names:
        safe = [address_safe(file, cache_directory) for file in local.files[name]]
        lists = DataFilesDict({name: DataFilesList(safe, [(fingerprint,)] * len(safe))})
        parts.append(resharded(load_local(source, local, name, lists)))
    return StreamedRows(tuple(parts), source_name(source), fingerprint, local.builder, root)


def load_local(source: Source, local: LocalFiles, name: str, lists: DataFilesDict) -> datasets.IterableDataset:
    """An iterable data set of a split's files."""

    def load(options: dict[str, Any]) -> datasets.IterableDataset:
        return datasets.load_dataset(local.builder, data_files=lists, split=name, streaming=True, **options)

    try:
        with without_bars():
            try:
                return load(local.options)
            except ValueError:
                if local.builder != SHARDS:
                    raise
                # Samples do not all have the same files; those of the first shard say which there are.
                return load(local.options | {"features": shard_features(local.files[name][:1])})
    except UserError:
        raise
    except Exception as error:  # each format fails in its own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{source_name(source)} cannot be read as {local.builder} ({reason}): repair or remove the file."
        ) from error


def named(kind: str, content: str) -> str:
    """A fingerprint of what names a source."""
    return f"{kind}:{hashlib.sha256(content.encode(errors='surrogateescape')).hexdigest()[:16]}"


def shared_out(rows: datasets.Dataset) -> datasets.IterableDataset:
    """Rows that lie on the disk, in shards."""
    return undecoded(rows.to_iterable_dataset(num_shards=max(1, min(DISK_SHARDS, len(rows)))))


def resharded(rows: datasets.IterableDataset) -> datasets.IterableDataset:
    """The same, of few parquet files their row groups as shards."""
    return undecoded(rows.reshard() if rows.num_shards < FEW_SHARDS else rows)


def undecoded(rows: datasets.IterableDataset) -> datasets.IterableDataset:
    """The same; pictures stay encoded, since decoding is ours, so that damaged ones are ours to name."""
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def column_of(row: Row, column: str, beside: Callable[[Row, str], Any] = lambda row, column: None) -> Any:
    """What a row holds in a column, or in a part of another ("json.caption"), or beside it; null if it does not.

    Args:
        row: By its columns.
        column: Which.
        beside: Finds what stands in files beside a row's picture.
    """
    if column in row:
        return row[column]
    outer, *keys = column.split(".")
    if keys and outer in row:
        value = row[outer]
        try:
            return value_at(json.loads(value) if isinstance(value, str | bytes) else value, keys)
        except ValueError:
            return None
    return beside(row, column)


def check_columns(row: Row, columns: Sequence[str], source: str, setting: str, found: Sequence[Any]) -> None:
    """Columns must be there, or be made of others.

    Args:
        row: The first one.
        columns: Their names.
        source: What a person knows the source by.
        setting: Where the names were given.
        found: What `column_of` gives for each, for the first rows together; null for nothing.

    Raises:
        UserError: With the nearest name.
    """
    for column, value in zip(columns, found, strict=True):
        if column not in row and value is None:
            raise UserError(
                f"{source} has no column '{column}'{nearest(column, row)}: its columns are {', '.join(row)}; set "
                f"{setting}."
            )


def check_unlimited(limit: int | None, setting: str) -> None:
    """A stream cannot be limited to its first rows.

    Raises:
        UserError: If it is.
    """
    if limit is not None:
        raise UserError(
            f"{setting} takes rows from the source's start, and a stream is read from many places at once: leave it "
            "out, and set trainer.max_steps, or set data.streaming to false."
        )
