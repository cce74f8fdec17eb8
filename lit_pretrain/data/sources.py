"""Any source through Hugging Face `datasets`: a hub name, local files, or a saved directory, opened in the same way.

Here is what documents and pictures share; `DocumentSource`, `ImageSource` and the others say which columns they need.
"""

import codecs
import glob
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import datasets
from datasets.data_files import FILES_TO_IGNORE
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from lit_pretrain.data.content_hash import content_hash
from lit_pretrain.data.file_reader import NoRowsError, UnreadableError, ending, read_files, read_split
from lit_pretrain.data.hub_source import load_from_hub, load_remote
from lit_pretrain.data.notices import say_once
from lit_pretrain.data.split_files import Splits, find_splits, is_hidden, list_directory, some
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.required import required

# Builders that make a sample of every file.
SAMPLES = {"imagefolder", "text"}
# Builders of text.
ENCODED = {"csv", "json", "text"}
TABLES = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".arrow": "arrow",
}
# The same, and files that are text alone.
TEXT_BUILDERS = TABLES | {".txt": "text", ".md": "text"}


@dataclass(frozen=True)
class Source:
    """Where rows come from; the data modules describe the fields, subclasses name the columns.

    Attributes:
        prefix: What stands before the names of the settings these fields come from, for messages ("test_").
        split_given: Whether a person named the split; else the only one there is will do.
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
    split_given: bool = field(default=True, kw_only=True)
    delimiter: str | None = field(default=None, kw_only=True)
    encoding: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check what a person gave; their home directory may be called ~."""
        if self.path is not None:
            object.__setattr__(self, "path", os.path.expanduser(self.path))
        if self.delimiter == "\\t":
            object.__setattr__(self, "delimiter", "\t")
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise UserError(f"data.delimiter is '{self.delimiter}': give the one character that ends a csv's cells.")
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError as error:
            raise UserError(
                f"data.encoding is '{self.encoding}': give one that Python knows, such as cp1252."
            ) from error

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

    def options(self, builder: str, files: list[str]) -> dict[str, Any]:
        """Settings of a builder for these files."""
        encoding = {"encoding": self.encoding} if self.encoding is not None and builder in ENCODED else {}
        if builder != "csv":
            if self.delimiter is not None and builder in TABLES.values():
                raise UserError(f"data.delimiter is for csv, and {source_name(self)} is {builder}: leave it out.")
            return encoding
        separators = {"\t" if ending(file) == ".tsv" else "," for file in files}
        if self.delimiter is None and len(separators) > 1:
            raise UserError(f"{source_name(self)} holds .csv and .tsv: give files of one kind, or set data.delimiter.")
        # Words such as None, NA and null are texts and classes like others: only empty cells are missing.
        cells = {"keep_default_na": False, "na_values": [""], "sep": self.delimiter or separators.pop()}
        return cells | encoding

    def read(self, local_files: "LocalFiles", content: str, cache_directory: Path) -> datasets.Dataset:
        """Local files as rows; `content` is their hash."""
        return read_tables(self, local_files, content, cache_directory)

    def content(self, local_files: "LocalFiles", cache_directory: Path) -> str:
        """What local files hold: their bytes, and what these are taken for."""
        options = json.dumps(local_files.options, sort_keys=True, default=str)
        return f"{local_files.builder}:{options}:{content_hash(local_files.all_files, cache_directory)}"


@dataclass(frozen=True)
class LocalFiles:
    """Files of a local source, and what reads them.

    Attributes:
        builder: Of `datasets`.
        files: The files to read by the split they are of.
        options: Of the builder.
        splits: Rows' splits that the source's names tell apart, read or not; none where they tell nothing.
        metadata: Tables that tell about the files, whatever split they are of.
    """

    builder: str
    files: dict[str, list[str]]
    options: dict[str, Any] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()

    @property
    def all_files(self) -> list[str]:
        """The files to read of all splits."""
        return [file for files in self.files.values() for file in files]


@dataclass(frozen=True)
class OpenedSource:
    """Rows with all their columns.

    Attributes:
        data: The rows.
        fingerprint: Changes with their content and with nothing else.
        files: The local files they were read from, if they were.
        builder: What read these.
        options: Of the builder.
    """

    data: datasets.Dataset
    fingerprint: str
    files: tuple[str, ...] = ()
    builder: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def open_source(source: Source, cache_directory: Path) -> OpenedSource:
    """Open a source of any kind.

    Args:
        source: What to read.
        cache_directory: Where local files are converted to.

    Raises:
        UserError: If a file, a data set or a split is missing, a file cannot be read, or there is no row.
    """
    try:
        datasets.ReadInstruction.from_spec(source.split)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"{source.setting('split')} is '{source.split}': give the name of a split, part of one (train[:10%]), or "
            "several (train+test)."
        ) from error
    if source.path is not None and (saved := saved_rows(source)) is not None:
        opened = OpenedSource(saved, f"saved:{saved._fingerprint}")
    elif (local := local_files(source)) is not None:
        content = source.content(local, cache_directory)
        data = source.read(local, content, cache_directory)
        opened = OpenedSource(data, content, tuple(local.all_files), local.builder, local.options)
    elif (remote := remote_files(source)) is not None:
        data = load_remote(*remote, source.split, source.setting("path"))
        opened = OpenedSource(data, f"hub:{data._fingerprint}")
    else:
        data = load_from_hub(
            required(source.path), source.name, source.data_files, source.split, source.setting("path")
        )
        opened = OpenedSource(data, f"hub:{data._fingerprint}")
    if len(opened.data) == 0:
        raise no_rows(source)
    return opened


def source_name(source: Source) -> str:
    """The source as a person knows it."""
    return str(source.data_files or source.path or "the bundled sample")


def no_rows(source: Source) -> UserError:
    """What is said of an empty source."""
    return UserError(f"{source_name(source)} has no rows: give {source.needed}.")


def sample_path(name: str = "sotu") -> Path:
    """A bundled sample's parquet file."""
    return Path(str(resources.files("lit_pretrain.samples") / f"{name}.parquet"))


def has_splits(source: Source) -> bool:
    """Whether the source has splits by name: one of the hub, a saved `DatasetDict`, or a directory of such names."""
    if source.path is not None and (Path(source.path) / "dataset_dict.json").is_file():
        return True
    if is_saved(source):
        return False
    if remote_files(source) is not None:
        return False
    local = local_patterns(source)
    return local is None or any(
        directory_splits(source, path).named for path in map(os.path.expanduser, local[1]) if os.path.isdir(path)
    )


def split_names(source: Source) -> list[str]:
    """The splits in what `datasets` reads as one: "train", "train+test", "train[:10%]"."""
    return [re.split(r"\[|\(", part)[0].strip() for part in source.split.split("+")]


def no_split(source: Source, splits: Iterable[str]) -> UserError:
    """What is said of a split that is not there."""
    missing = next(name for name in split_names(source) if name not in splits)
    return UserError(
        f"{source_name(source)} has no split '{missing}'{nearest(missing, splits)}: its splits are "
        f"{', '.join(splits)}; set {source.setting('split')}."
    )


def is_saved(source: Source) -> bool:
    """Whether the path is a directory of `Dataset.save_to_disk`."""
    return source.path is not None and (Path(source.path) / "dataset_info.json").is_file()


def saved_rows(source: Source) -> datasets.Dataset | None:
    """Rows of a directory of `save_to_disk`, or null if the path is none."""
    if is_saved(source):
        return datasets.load_from_disk(source.path)
    if not (Path(required(source.path)) / "dataset_dict.json").is_file():
        return None
    splits = datasets.load_from_disk(source.path)
    names = split_names(source)
    if not source.split_given and len(splits) == 1 and names[0] not in splits:
        return next(iter(splits.values()))
    if not set(names) <= set(splits):
        raise no_split(source, splits)
    return read_split(splits, source.split)


def local_patterns(source: Source) -> tuple[str | None, list[str]] | None:
    """The builder that a local source names, if it names one, and its files, directories or patterns; null for the hub.

    Raises:
        UserError: If there is no such file or directory.
    """
    patterns = [source.data_files] if isinstance(source.data_files, str) else list(source.data_files or [])
    builder = source.path if source.path in set(source.builders.values()) else None
    if any("://" in place for place in (source.path or "", *patterns)):
        return None
    if source.path is not None and builder is None:
        path = Path(source.path)
        if not path.exists():
            looks_local = path.is_absolute() or source.path.startswith(".") or path.suffix in source.builders
            if looks_local or source.path.count("/") > 1:
                raise UserError(f"There is no file or directory {path}: check {source.setting('path')}.")
            return None
        # Within a directory, as `datasets` takes them; else from the current one.
        within = [os.path.join(path, pattern) for pattern in patterns] if path.is_dir() else patterns
        patterns = [inner if expand(inner) else pattern for inner, pattern in zip(within, patterns, strict=True)] or [
            str(path)
        ]
    elif source.path is None and source.data_files is None:
        return "parquet", [str(sample_path(source.sample))]
    return builder, patterns


def remote_files(source: Source) -> tuple[str, list[str], dict[str, Any]] | None:
    """Builder, addresses and options of a source of files elsewhere (https://, s3://), or null for a name on the hub.

    Raises:
        UserError: If nothing says of which kind the files are.
    """
    addresses = [source.data_files] if isinstance(source.data_files, str) else list(source.data_files or [])
    builder = source.path if source.path in set(source.builders.values()) else None
    if source.path is not None and "://" in source.path:
        addresses = [source.path] if not addresses else [f"{source.path.rstrip('/')}/{file}" for file in addresses]
    elif not any("://" in file for file in addresses) or (source.path is not None and builder is None):
        return None
    endings = [ending(place.split("::")[0].split("?")[0]) for place in addresses]
    builder = builder or source.builder_of(
        {builder_name for builder_name in map(source.builders.get, endings) if builder_name is not None}
    )
    if builder is None:
        raise UserError(
            f"{source_name(source)} does not say by its ending what it holds: set {source.setting('path')} to "
            f"{builder_names(source)} and {source.setting('data_files')} to the address."
        )
    return builder, addresses, source.options(builder, [place.split("?")[0] for place in addresses])


def local_files(source: Source) -> LocalFiles | None:
    """Builder and files of a local source, or null for a name on the hub.

    Raises:
        UserError: If there is no such file, directory or split, or the files are of several kinds.
    """
    local = local_patterns(source)
    if local is None:
        return None
    builder, patterns = local
    names = split_names(source)
    files: dict[str, list[str]] = {}
    splits: dict[str, None] = {}
    options: dict[str, Any] = {}
    metadata: list[str] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            directory = directory_splits(source, str(path))
            splits |= dict.fromkeys(directory.files if directory.named else ())
            options |= directory.options
            metadata += [os.path.join(path, *file.split("/")) for file in directory.metadata]
            chosen = chosen_splits(source, directory, by_path=not source.data_files)
            for split, kept in chosen.items():
                files.setdefault(split, []).extend(os.path.join(path, *file.split("/")) for file in kept)
        else:
            files.setdefault(names[0], []).extend(matching_files(pattern, source))
    if files and not set(names) <= set(files):
        raise no_split(source, files)
    files = {split: sorted(kept) for split, kept in files.items()}
    everything = [file for kept in files.values() for file in kept]
    metadata += [file for file in everything if os.path.basename(file) in ImageFolder.METADATA_FILENAMES]
    samples = [file for file in everything if file not in metadata] or everything
    kinds = {builder_name for file in samples if (builder_name := source.builders.get(ending(file))) is not None}
    builder = builder or source.builder_of(kinds)
    if builder is None:
        endings_found = (
            ", ".join(sorted({Path(file).suffix for file in everything or everything_in(patterns)})) or "no file"
        )
        raise UserError(
            f"{source_name(source)} holds {endings_found}: give files of one kind ({source.kinds}), or set "
            f"{source.setting('path')} to {builder_names(source)} and list {source.setting('data_files')}."
        )
    files = {
        split: [file for file in kept if source.builders.get(ending(file), builder) == builder]
        for split, kept in files.items()
    }
    options = source.options(builder, [file for kept in files.values() for file in kept]) | options
    return LocalFiles(builder, files, options, tuple(splits), tuple(sorted(set(metadata))))


def directory_splits(source: Source, directory: str) -> Splits:
    """The files of a directory by split, and a word on those that are not read."""
    listing = list_directory(directory, lambda name: ending(name) in source.builders)
    name = None if source.path in set(source.builders.values()) else source.name
    splits = find_splits(
        listing, name, lambda files: source.builder_of({source.builders[ending(file)] for file in files}) in SAMPLES
    )
    # What is called like a sample may describe it.
    stems = {os.path.splitext(file)[0] for file in listing.files} if listing.foreign else set()
    foreign = [file for file in listing.foreign if os.path.splitext(file)[0] not in stems]
    if not any(source.builders[ending(file)] == "text" for file in listing.files):
        # That a README is no row of a table needs no word.
        foreign = [file for file in foreign if os.path.basename(file) not in FILES_TO_IGNORE]
    for files, what in (
        (listing.hidden, "hidden"),
        (foreign, "of other kinds"),
        (splits.unread, "in none of its splits"),
    ):
        if files:
            say_once(
                f"{directory}: {len(files)} {'file is' if len(files) == 1 else 'files are'} {what}, and left out "
                f"({some(files)})."
            )
    if splits.note:
        say_once(splits.note)
    return splits


def chosen_splits(source: Source, splits: Splits, by_path: bool) -> dict[str, list[str]]:
    """Those of a directory's splits that are to be read.

    Args:
        source: What to read.
        splits: The directory's splits.
        by_path: Whether the directory is the whole source, so that its split must have the name that was given.

    Raises:
        UserError: If one is not there.
    """
    names = split_names(source)
    if set(names) <= set(splits.files):
        return {name: splits.files[name] for name in names}
    lone = len(splits.files) == 1 and len(names) == 1
    if not splits.files or lone and not (by_path and source.split_given):
        return {names[0]: [file for files in splits.files.values() for file in files]}
    raise no_split(source, splits.files)


def builder_names(source: Source) -> str:
    """The builders as an enumeration; arrow files are what `datasets` writes, so few people name that one."""
    names = [name for name in dict.fromkeys(source.builders.values()) if name != "arrow"]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def everything_in(directories: list[str]) -> list[str]:
    """All files below directories, of whatever kind, but for hidden ones."""
    listings = [list_directory(directory, lambda name: True) for directory in directories if os.path.isdir(directory)]
    return [
        os.path.join(listing.root, *file.split("/")) for listing in listings for file in listing.files + listing.foreign
    ]


def matching_files(pattern: str, source: Source) -> list[str]:
    """The file of a path, or the files of a glob pattern.

    Raises:
        UserError: If there is none.
    """
    files = expand(pattern)
    if not files:
        settings = f"{source.setting('data_files')} or {source.setting('path')}"
        raise UserError(f"No file matches {pattern}: check {settings}.")
    return files


def expand(pattern: str) -> list[str]:
    """The file of a path, or the files of a glob pattern; brackets in names that are there are no pattern."""
    path = Path(pattern).expanduser()
    if path.is_file():
        return [str(path)]
    parts = path.parts
    literal = 0
    while literal < len(parts) and os.path.exists(os.path.join(*parts[: literal + 1])):
        literal += 1
    escaped = [glob.escape(part) for part in parts[:literal]] + list(parts[literal:])
    paths = glob.glob(os.path.join(*escaped), recursive=True)
    hidden_parts = sum(is_hidden(part) for part in parts)
    return [
        file
        for file in paths
        if os.path.isfile(file) and sum(is_hidden(part) for part in Path(file).parts) == hidden_parts
    ]


def read_tables(source: Source, local_files: LocalFiles, content: str, cache_directory: Path) -> datasets.Dataset:
    """Read local files with the builder of their kind.

    Raises:
        UserError: If they cannot be read, or hold nothing.
    """
    try:
        return read_files(
            local_files.builder, local_files.files, source.split, local_files.options, content, cache_directory
        )
    except NoRowsError as error:
        raise no_rows(source) from error
    except UnreadableError as error:
        raise UserError(
            f"{error.file or source_name(source)} cannot be read as {local_files.builder} ({error.reason}): "
            f"{error.advice}."
        ) from error


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
        alone = data.column_names[0] if len(data.column_names) == 1 else ""
        delimiter = next((separator for separator in ";\t|" if separator in alone), None)
        hint = f", or data.delimiter to {delimiter!r}" if delimiter else ""
        raise UserError(
            f"{source} has no column '{column}'{nearest(column, data.column_names)}: its columns are "
            f"{', '.join(data.column_names)}; set {setting}{hint}."
        )
