"""Files read by the builders of `datasets`, with the cause in one sentence where that fails.

The library keeps a converted copy in the directory of caches, says of any failure that "an error occurred while
generating the dataset", and logs the file it happened in; where the directory cannot be written it fails even if the
copy is there.
"""

import atexit
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.exceptions import DatasetGenerationCastError
from datasets.packaged_modules.parquet.parquet import ParquetConfig
from datasets.table import CastError
from pyarrow.dataset import ParquetFragmentScanOptions

from lit_pretrain.data.disk_cache import disk_is_full, is_full, is_read_only, read_only
from lit_pretrain.errors import UserError

# Endings after those of text that `datasets` unpacks by itself.
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lz4"}
# Files that are looked into to find the one with other columns.
COMPARED = 100


class UnreadableError(Exception):
    """Files cannot be read; the text says why and what to do, and names the file where it is known."""

    def __init__(self, reason: str, advice: str = "repair or remove the file", file: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.advice, self.file = reason, advice, file


class NoRowsError(Exception):
    """Files can be read, and hold nothing."""


def ending(file: str) -> str:
    """What a file's name ends with, in lower case, without what says that it is compressed."""
    stem, last = os.path.splitext(file)
    if last.lower() in COMPRESSED:
        last = os.path.splitext(stem)[1] or last
    return last.lower()


def is_compressed(file: str) -> bool:
    """Whether a file's name says that it is compressed."""
    return os.path.splitext(file)[1].lower() in COMPRESSED


def read_files(
    builder: str,
    files: Mapping[str, list[str]],
    split: str,
    options: Mapping[str, Any],
    content: str,
    cache_directory: Path,
) -> datasets.Dataset:
    """Rows of files, by way of a converted copy.

    Args:
        builder: Of `datasets`.
        files: Paths by split.
        split: What to read of them.
        options: Of the builder.
        content: Hash of the files' bytes.
        cache_directory: Where the copy is kept; it may be read-only if the copy is there.

    Raises:
        UnreadableError: If they cannot be read.
        NoRowsError: If they hold nothing.
        UserError: If the disk is full, or the directory can neither be written nor has the copy.
    """
    records: list[logging.LogRecord] = []
    try:
        # As lists of files rather than of patterns, which names with brackets would be; and by their content, not their
        # time of change, so that no converted copy of another content is found.
        named = {name: [address_safe(file, cache_directory) for file in some] for name, some in files.items()}
        lists = DataFilesDict({name: DataFilesList(some, [(content,)] * len(some)) for name, some in named.items()})
        with without_bars(), kept_records(records):
            if os.path.isdir(cache_directory) and not os.access(cache_directory, os.W_OK):
                return from_read_only(builder, lists, split, options, cache_directory)
            made = datasets.load_dataset_builder(builder, data_files=lists, cache_dir=str(cache_directory), **options)
            if isinstance(made.config, ParquetConfig):
                # Else all that was read of a file, compressed, is held to its end. Set here, the copy's name stays.
                made.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
            made.download_and_prepare()
            pyarrow.default_memory_pool().release_unused()
            return made.as_dataset(split=split)
    except UserError:
        raise
    except Exception as error:  # each format fails in its own way
        causes = list(causes_of(error))
        if any(is_full(cause) for cause in causes):
            raise disk_is_full(cache_directory, "converted copy of the source") from error
        if any(is_read_only(cause, cache_directory) for cause in causes):
            raise read_only(cache_directory, "converted copy of the source", cast(OSError, causes[-1])) from error
        if any("corresponds to no data" in str(cause) for cause in causes):
            raise NoRowsError from error
        raise unreadable(causes[-1], builder, files, options, records) from error


def address_safe(file: str, cache_directory: Path) -> str:
    """The path of a file; of a compressed one with a bracket in its name, that of a link without.

    The library makes an address of a compressed file's path, and there a bracket begins the number of a host.
    """
    if not (is_compressed(file) and re.search(r"[\[\]]", file)):
        return file
    place = os.path.abspath(file)
    link = cache_directory / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}{''.join(Path(file).suffixes[-2:])}"
    if not link.is_symlink():
        cache_directory.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(place)
    return str(link)


def from_read_only(
    builder: str, lists: DataFilesDict, split: str, options: Mapping[str, Any], cache_directory: Path
) -> datasets.Dataset:
    """The converted copy in a directory that cannot be written, where the library could not even lock it.

    The builder is given a directory of its own, with a link to the copy, and puts its locks there.

    Raises:
        UserError: If there is no such copy.
    """
    own = links_directory()
    made = datasets.load_dataset_builder(builder, data_files=lists, cache_dir=own, **options)
    copy = os.path.join(os.path.abspath(cache_directory), os.path.relpath(made.cache_dir, own))
    if not os.path.isdir(copy):
        raise read_only(cache_directory, "converted copy of the source")
    if not os.path.exists(made.cache_dir):
        os.makedirs(os.path.dirname(made.cache_dir), exist_ok=True)
        os.symlink(copy, made.cache_dir, target_is_directory=True)
    made.download_and_prepare()
    return made.as_dataset(split=split)


@cache
def links_directory() -> str:
    """A directory that lasts as long as this process."""
    directory = tempfile.mkdtemp(prefix="lit_pretrain-")
    owner = os.getpid()
    # Not from a process that was forked: the directory is its parent's.
    atexit.register(lambda: shutil.rmtree(directory, ignore_errors=True) if os.getpid() == owner else None)
    return directory


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, the innermost last.

    The library raises the error about other columns while it handles the cause, and not from it.
    """
    while error is not None:
        yield error
        error = error.__cause__ or (error.__context__ if isinstance(error, DatasetGenerationCastError) else None)


def unreadable(
    cause: BaseException,
    builder: str,
    files: Mapping[str, list[str]],
    options: Mapping[str, Any],
    records: list[logging.LogRecord],
) -> UnreadableError:
    """What is said of files that cannot be read.

    Args:
        cause: The innermost error.
        builder: Of `datasets`.
        files: Paths by split.
        options: Of the builder.
        records: What the library logged.
    """
    paths = [file for some in files.values() for file in some]
    logged = [match[1] for record in records if (match := re.search(r"file '(.*?)'", record.getMessage()))]
    file = paths[0] if len(paths) == 1 else logged[-1] if logged and logged[-1] in paths else None
    if isinstance(cause, UnicodeDecodeError):
        advice = "set data.encoding to what it was written in (cp1252 or utf-16, say)"
        return UnreadableError(f"it is not {cause.encoding}: byte {cause.object[cause.start]:#04x}", advice, file)
    schemas = re.fullmatch(r"Schema at index \d+ was different: \n(.*)\nvs\n(.*)", str(cause), re.DOTALL)
    if schemas:
        first, second = (dict(line.rsplit(": ", 1) for line in part.splitlines()) for part in schemas.groups())
        if set(first) == set(second):
            column = next(name for name in first if first[name] != second[name])
            reason = f"the column '{column}' holds {first[column]} in some files and {second[column]} in others"
            return UnreadableError(reason, "write it alike in all files", file)
    if schemas or isinstance(cause, CastError) and "column names don't match" in str(cause):
        return other_columns(builder, paths, options)
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
    return UnreadableError(reason, file=file)


def other_columns(builder: str, paths: list[str], options: Mapping[str, Any]) -> UnreadableError:
    """What is said of files with different columns."""
    advice = "give files of the same columns, or name those to read by data.data_files"
    with without_bars():
        columns = {path: columns_of(builder, path, options) for path in paths[:COMPARED]}
    for path, found in columns.items():
        if set(found) != set(columns[paths[0]]):
            reason = f"it has the columns {', '.join(found)}, and {paths[0]} has {', '.join(columns[paths[0]])}"
            return UnreadableError(reason, advice, path)
    return UnreadableError("rows do not all have the same columns", advice)


def columns_of(builder: str, path: str, options: Mapping[str, Any]) -> list[str]:
    """The columns of a file's first row."""
    files = DataFilesDict({"train": DataFilesList([path], [()])})
    rows = datasets.load_dataset(builder, data_files=files, split="train", streaming=True, **options)
    return list(next(iter(rows), {}))


def read_split(parts: Mapping[str, datasets.Dataset], split: str) -> datasets.Dataset:
    """What a split of `datasets` means ("train[:10%]", "train+test"), where its parts are there already."""
    chosen = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(part) for name, part in parts.items()})
    rows = [parts[part.splitname].select(range(part.from_ or 0, part.to)) for part in chosen]
    return rows[0] if len(rows) == 1 else datasets.concatenate_datasets(rows)


@contextmanager
def without_bars() -> Iterator[None]:
    """Let `datasets` show no bars."""
    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


class Keeper(logging.Handler):
    """Keeps what is logged.

    Args:
        records: Where.
    """

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.records.append(record)


@contextmanager
def kept_records(records: list[logging.LogRecord]) -> Iterator[None]:
    """Keep what `datasets` logs instead of showing it, and show it after all if nothing fails."""
    logger = logging.getLogger("datasets")
    handlers, logger.handlers = logger.handlers, [Keeper(records)]
    try:
        yield
    finally:
        logger.handlers = handlers
    for record in records:
        logger.handle(record)
