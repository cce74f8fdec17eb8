"""Any source through Hugging Face `datasets`: a hub name, local files, or a saved directory, opened in the same way.

Here is what documents and pictures share; `document_source.py` and `image_source.py` say which columns they need.
"""

import glob
import os
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import ClassVar

import datasets

from lit_pretrain.data.content_hash import content_hash
from lit_pretrain.data.from_hub import load_from_hub
from lit_pretrain.errors import UserError, nearest

TABLES = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".arrow": "arrow",
}


@dataclass(frozen=True)
class Source:
    """Where rows come from; the data modules describe the fields, subclasses name the columns.

    Attributes:
        prefix: What stands before the names of the settings these fields come from, for messages ("test_").
        builders: Builder of `datasets` for each ending of a file's name.
        sample: Bundled sample that is read if neither `path` nor `data_files` is given.
        needed: What the source must have, for messages.
        kinds: What a person may give, for messages.
    """

    path: str | None = None
    name: str | None = None
    data_files: str | list[str] | None = None
    split: str = "train"
    prefix: str = field(default="", kw_only=True)

    builders: ClassVar[dict[str, str]] = TABLES
    sample: ClassVar[str]
    needed: ClassVar[str] = "at least one row"
    kinds: ClassVar[str] = ", ".join(sorted(TABLES))

    def setting(self, name: str) -> str:
        """A setting as a person writes it."""
        return f"data.{self.prefix}{name}"

    def builder_of(self, kinds: set[str]) -> str | None:
        """The builder for files of these kinds, or null if there is none or it is not clear which."""
        return next(iter(kinds)) if len(kinds) == 1 else None

    def options(self, builder: str, files: list[str]) -> dict[str, str]:
        """Settings of a builder for these files."""
        return {"sep": "\t"} if builder == "csv" and files[0].endswith(".tsv") else {}

    def read(self, builder: str, files: list[str], cache_directory: Path) -> datasets.Dataset:
        """Local files as rows."""
        return read_tables(self, builder, files, cache_directory)

    def content(self, builder: str, files: list[str], cache_directory: Path) -> str:
        """Hash of local files."""
        return content_hash(files, cache_directory)


@dataclass(frozen=True)
class OpenedSource:
    """Rows with all their columns.

    Attributes:
        data: The rows.
        fingerprint: Changes with their content and with nothing else.
        files: The local files they were read from, if they were.
    """

    data: datasets.Dataset
    fingerprint: str
    files: tuple[str, ...] = ()


def open_source(source: Source, cache_directory: Path) -> OpenedSource:
    """Open a source of any kind.

    Args:
        source: What to read.
        cache_directory: Where local files are converted to.

    Raises:
        UserError: If a file, a data set or a split is missing, a file cannot be read, or there is no row.
    """
    if source.path is not None and (saved := saved_rows(source)) is not None:
        opened = OpenedSource(saved, f"saved:{saved._fingerprint}")
    elif (local := local_files(source)) is not None:
        builder, files = local
        data = source.read(builder, files, cache_directory)
        opened = OpenedSource(data, source.content(builder, files, cache_directory), tuple(files))
    else:
        data = load_from_hub(source.path, source.name, source.data_files, source.split, source.setting("path"))
        opened = OpenedSource(data, f"hub:{data._fingerprint}")
    if len(opened.data) == 0:
        raise no_rows(source)
    return opened


def shown(source: Source) -> str:
    """The source as a person knows it."""
    return str(source.data_files or source.path or "the bundled sample")


def no_rows(source: Source) -> UserError:
    """What is said of an empty source."""
    return UserError(f"{shown(source)} has no rows: give {source.needed}.")


def sample_path(name: str = "sotu") -> Path:
    """A bundled sample's parquet file."""
    return Path(str(resources.files("lit_pretrain.samples") / f"{name}.parquet"))


def has_splits(source: Source) -> bool:
    """Whether the source has splits by name: one of the hub or a saved `DatasetDict`, not files."""
    if source.path is not None and (Path(source.path) / "dataset_dict.json").is_file():
        return True
    return not is_saved(source) and local_files(source) is None


def is_saved(source: Source) -> bool:
    """Whether the path is a directory of `Dataset.save_to_disk`."""
    return source.path is not None and (Path(source.path) / "dataset_info.json").is_file()


def saved_rows(source: Source) -> datasets.Dataset | None:
    """Rows of a directory of `save_to_disk`, or null if the path is none."""
    if is_saved(source):
        return datasets.load_from_disk(source.path)
    if not (Path(source.path) / "dataset_dict.json").is_file():
        return None
    splits = datasets.load_from_disk(source.path)
    if source.split not in splits:
        raise UserError(
            f"{shown(source)} has no split '{source.split}'{nearest(source.split, splits)}: its splits are "
            f"{', '.join(splits)}; set {source.setting('split')}."
        )
    return splits[source.split]


def local_files(source: Source) -> tuple[str, list[str]] | None:
    """Builder and files of a local source, or null for a name on the hub."""
    if source.path is None and source.data_files is None:
        return "parquet", [str(sample_path(source.sample))]
    patterns = [source.data_files] if isinstance(source.data_files, str) else list(source.data_files or [])
    builder = source.path if source.path in set(source.builders.values()) else None
    if source.path is not None and builder is None:
        path = Path(source.path)
        if not path.exists():
            looks_local = path.is_absolute() or source.path.startswith(".") or path.suffix in source.builders
            if looks_local or source.path.count("/") > 1:
                raise UserError(f"There is no file or directory {path}: check {source.setting('path')}.")
            return None
        patterns = patterns or [str(path)]
    if any("://" in pattern for pattern in patterns):
        return None
    files = sorted(file for pattern in patterns for file in expand(pattern, source))
    kinds = {source.builders.get(ending(file)) for file in files} - {None}
    builder = builder or source.builder_of(kinds)
    if builder is None:
        found = ", ".join(sorted({Path(file).suffix for file in files or everything_in(patterns)})) or "no file"
        raise UserError(
            f"{shown(source)} holds {found}: give files of one kind ({source.kinds}), or set {source.setting('path')} "
            f"to {builder_names(source)} and list {source.setting('data_files')}."
        )
    return builder, [file for file in files if source.builders.get(ending(file), builder) == builder]


def ending(file: str) -> str:
    """What a file's name ends with, in lower case."""
    return os.path.splitext(file)[1].lower()


def builder_names(source: Source) -> str:
    """The builders as an enumeration; arrow files are what `datasets` writes, so few people name that one."""
    names = [name for name in dict.fromkeys(source.builders.values()) if name != "arrow"]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def everything_in(directories: list[str]) -> list[str]:
    """All files below directories, of whatever kind."""
    return [
        os.path.join(parent, name)
        for directory in directories
        for parent, _, names in os.walk(directory, followlinks=True)
        for name in names
    ]


def expand(pattern: str, source: Source) -> list[str]:
    """Files of a path, a directory or a glob pattern."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        return [one for one in everything_in([str(path)]) if ending(one) in source.builders]
    files = (
        [str(path)] if path.is_file() else [one for one in glob.glob(str(path), recursive=True) if os.path.isfile(one)]
    )
    if not files:
        settings = f"{source.setting('data_files')} or {source.setting('path')}"
        raise UserError(f"No file matches {pattern}: check {settings}.")
    return files


def read_tables(source: Source, builder: str, files: list[str], cache_directory: Path) -> datasets.Dataset:
    """Read local files with the builder of their kind."""
    shown_bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            builder,
            data_files={source.split: files},
            split=source.split,
            cache_dir=str(cache_directory),
            **source.options(builder, files),
        )
    except Exception as error:  # each format fails in its own way
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):
            raise no_rows(source) from error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0][:200]
        raise UserError(
            f"{shown(source)} cannot be read as {builder} ({reason}): repair or remove the file."
        ) from error
    finally:
        if not shown_bars:
            datasets.enable_progress_bars()


def check_column(data: datasets.Dataset, column: str, source: str, setting: str) -> None:
    """The column must be there.

    Args:
        data: The rows.
        column: Its name.
        source: What a person knows the source by.
        setting: Where the name was given.

    Raises:
        UserError: With the nearest name, if it is not.
    """
    if column not in data.column_names:
        raise UserError(
            f"{source} has no column '{column}'{nearest(column, data.column_names)}: its columns are "
            f"{', '.join(data.column_names)}; set {setting}."
        )
