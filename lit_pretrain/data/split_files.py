"""Which files of a directory are which split, by the rules of `datasets`: a README's configurations, or the names.

The patterns and the order in which they are tried are the library's own (`datasets.data_files`). They are matched here
against one listing of the directory: the library lists it again for every pattern, takes brackets in a directory's name
for a pattern, and reads a file twice that two patterns match. In two more cases the names decide otherwise: where a
class or a document is merely called like a split, and where a file would be in two splits.
"""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from datasets import config
from datasets.data_files import (
    DEFAULT_PATTERNS_SPLIT_IN_DIR_NAME,
    DEFAULT_PATTERNS_SPLIT_IN_FILENAME,
    FILES_TO_IGNORE,
    _get_data_files_patterns,
    sanitize_patterns,
)
from datasets.info import DatasetInfosDict
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.utils.metadata import MetadataConfigs
from fsspec.utils import glob_translate
from huggingface_hub import DatasetCard, DatasetCardData

from lit_pretrain.errors import UserError, nearest

# Files that tell about a data set, in whatever format, and are none of its samples.
COMPANIONS = re.compile(r"(readme|licen[cs]e|copying|notice|citation|changelog)(\.(txt|md))?", re.IGNORECASE)
EVERYTHING = "train"


@dataclass
class Listing:
    """The files below a directory.

    Attributes:
        root: The directory.
        files: Those of some kinds, relative to it, sorted.
        hidden: Of these kinds, but hidden (.ipynb_checkpoints, ._a.png, __MACOSX), as `datasets` leaves out too.
        foreign: Of other kinds, and those that only tell about the data.
    """

    root: str
    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Splits:
    """A directory's files by split.

    Attributes:
        files: Files of each split, relative to the directory and sorted; `EVERYTHING` where no name says anything else.
        named: Whether the names or a README say which file is of which split.
        options: What a README sets for the builder.
        unread: Files that are in no split.
        metadata: Tables of the directory by which `datasets` knows what pictures show, in a split or above it.
        note: What else a person should know, or an empty string.
    """

    files: dict[str, list[str]]
    named: bool
    options: dict[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    note: str = ""


def is_hidden(name: str) -> bool:
    """Whether a file or directory is one that `datasets` reads only if it is asked for."""
    return name.startswith((".", "__")) or name == "lost+found"


def list_directory(root: str, is_known: Callable[[str], bool]) -> Listing:
    """List the files below a directory once, following links to directories but not in circles.

    Args:
        root: The directory.
        is_known: Whether a file is of a kind that can be read, by its name.

    Raises:
        UserError: If a directory that is not hidden may not be listed.
    """
    listing = Listing(root)
    companions: list[Any] = []
    pending = [("", os.path.realpath(root), False)]
    while pending:
        below, real, hidden = pending.pop()
        with list_entries(os.path.join(root, below), hidden) as entries:
            for entry in entries:
                path = f"{below}/{entry.name}" if below else entry.name
                out_of_sight = hidden or is_hidden(entry.name)
                if entry.is_dir():
                    target = os.path.join(real, entry.name)
                    if entry.is_symlink():
                        target = os.path.realpath(target)
                        if f"{real}/".startswith(f"{target}/"):
                            continue
                    pending.append((path, target, out_of_sight))
                elif not is_known(entry.name):
                    listing.foreign += [] if out_of_sight or entry.name in FILES_TO_IGNORE else [path]
                elif out_of_sight:
                    listing.hidden.append(path)
                elif entry.name in FILES_TO_IGNORE:
                    listing.foreign.append(path)
                else:
                    (companions if COMPANIONS.fullmatch(entry.name) else listing.files).append(path)
    if listing.files:
        listing.foreign += companions
    else:
        listing.files = companions
    for paths in (listing.files, listing.hidden, listing.foreign):
        paths.sort()
    return listing


def list_entries(directory: str, hidden: bool) -> AbstractContextManager[Iterable[os.DirEntry]]:
    """What a directory holds; nothing if it is hidden and may not be listed."""
    try:
        return os.scandir(directory)
    except OSError as error:
        if hidden:
            return nullcontext(())
        raise UserError(
            f"The directory {directory} cannot be listed ({error.strerror}): check its permissions."
        ) from error


class NamePatterns:
    """Matches the names of files by patterns as `datasets` has them.

    Args:
        files: Paths below a directory.
    """

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.folders: dict[str, list[str]] = {}
        for file in files:
            self.folders.setdefault(file.rpartition("/")[0], []).append(file)

    def __call__(self, pattern: str) -> list[str]:
        """The files that a pattern matches."""
        regex = re.compile(glob_translate(pattern))
        if pattern.endswith("**"):
            # Whatever stands before it are folders, of which there are far fewer.
            chosen = [files for folder, files in self.folders.items() if regex.match(f"{folder}/x".lstrip("/"))]
            return [file for files in chosen for file in files]
        # A plain search for the longest word first: 24 patterns over a million names are half a minute otherwise.
        words = re.findall(r"[^*?/\[\]]+", re.sub(r"\[[^]]*\]", "*", pattern))
        word = max(words, key=len, default="")
        return [file for file in self.files if word in file and regex.match(file)]


def find_splits(listing: Listing, name: str | None, files_are_samples: Callable[[list[str]], bool]) -> Splits:
    """Which file of a directory is of which split.

    Args:
        listing: The directory.
        name: Configuration of its README; null takes the default one.
        files_are_samples: Whether each of some files is a sample of its own, so that it, or its folder, may be called
            like a split by chance.

    Raises:
        UserError: If the README cannot be read or has no such configuration, a file would be in two splits, or it is
            not clear whether names are those of splits.
    """
    match = NamePatterns(listing.files)
    card = read_card(listing.root)
    try:
        configurations = MetadataConfigs.from_dataset_card_data(card)
        infos = DatasetInfosDict.from_dataset_card_data(card)
        default = configurations.get_default_config_name()
    except (ValueError, TypeError, KeyError) as error:
        raise bad_card(listing.root, error) from error
    base, settings = "", {}
    if configurations:
        chosen = name or default
        if chosen is None or chosen not in configurations:
            problem = f"no configuration '{name}'{nearest(name, configurations)}" if name else "several configurations"
            raise UserError(f"{listing.root} has {problem}: set data.name to one of {', '.join(configurations)}.")
        settings = {key: value for key, value in configurations[chosen].items() if key not in ("default", "version")}
        base = str(PurePosixPath(settings.pop("data_dir", None) or ""))
        base = "" if base == "." else f"{base}/"
        if base:
            match = NamePatterns([file[len(base) :] for file in listing.files if file.startswith(base)])
    else:
        chosen = name or (next(iter(infos)) if len(infos) == 1 else "default")
    features = infos[chosen].features if chosen in infos else None
    options = settings | ({"features": features} if features else {})
    data_files = options.pop("data_files", None)
    try:
        patterns = sanitize_patterns(data_files) if data_files is not None else named_patterns(match)
        files = {
            split: sorted({file for pattern in given for file in match(pattern)}) for split, given in patterns.items()
        }
    except ValueError as error:
        raise bad_card(listing.root, error) from error
    files = {split: found for split, found in files.items() if found}
    named = data_files is not None or list(patterns.values()) != [["**"]]
    note = ""
    if data_files is None and named:
        files, note = check_names(listing, match.files, files, patterns, files_are_samples)
        named = not note
    elif data_files is not None and not files:
        raise UserError(f"No file of {listing.root} is one that its README names for '{chosen}': check data.path.")
    read = {file for found in files.values() for file in found}
    metadata = tuple(file for file in listing.files if file.rpartition("/")[2] in ImageFolder.METADATA_FILENAMES)
    unread = tuple(file for name in match.files if name not in read and (file := base + name) not in metadata)
    files = {split: [base + file for file in found] for split, found in files.items()}
    return Splits(files, named, options, unread if named else (), metadata, note)


def named_patterns(match: NamePatterns) -> dict[str, list[str]]:
    """The patterns of `datasets` that say which split a file is of; of everything where none matches."""
    try:
        return {str(split): patterns for split, patterns in _get_data_files_patterns(match).items()}
    except FileNotFoundError:
        return {EVERYTHING: ["**"]}


def check_names(
    listing: Listing,
    names: list[str],
    files: dict[str, list[str]],
    patterns: dict[str, list[str]],
    files_are_samples: Callable[[list[str]], bool],
) -> tuple[dict[str, list[str]], str]:
    """Splits by names, unless the names are those of classes or samples; and what is said of these."""
    owners: dict[str, str] = {}
    for split, found in files.items():
        for file in found:
            if owners.setdefault(file, split) != split:
                raise UserError(
                    f"By its name, {file} of {listing.root} is of the split {owners[file]} and of the split {split}: "
                    "rename it or its folder, or name the files of each by data.data_files."
                )
    rest = [
        file for file in names if file not in owners and PurePosixPath(file).name not in ImageFolder.METADATA_FILENAMES
    ]
    if not rest or not files_are_samples(list(owners)):
        return files, ""
    by_folder = all(patterns[split] == DEFAULT_PATTERNS_SPLIT_IN_DIR_NAME.get(split) for split in files)
    by_file = all(patterns[split] == DEFAULT_PATTERNS_SPLIT_IN_FILENAME.get(split) for split in files)
    if by_folder:
        tried = NamePatterns([f"{PurePosixPath(file).parent.name}/x" for file in owners])
        called = {file for split in files for one in patterns[split] for file in tried(one)}
        # Folders that are called like a split and hold samples themselves, not folders of these.
        flat = {str(PurePosixPath(file).parent) for file in owners if f"{PurePosixPath(file).parent.name}/x" in called}
        around = {PurePosixPath(folder).parent for folder in flat}
        loose_files = sorted(
            {
                str(above)
                for file in rest
                for above in PurePosixPath(file).parents
                if above.name and above.parent in around and str(above) not in flat
            }
        )
        alike, others, kind = sorted(flat), loose_files, "folders"
    else:
        alike, others, kind = list(owners), rest if by_file else [], "files"
    if not others:
        return files, ""
    sentence = f"Of the {kind} of {listing.root}, {some(alike)} have the name of a split and {some(others)} have not"
    if len(files) > 1:
        raise UserError(
            f"{sentence}: name what is trained on by data.data_files (the pattern '{listing.root}/**' takes "
            f"everything), or move the other {kind} away."
        )
    return {EVERYTHING: names}, f"{sentence}: they are read alike, and not as splits."


def read_card(root: str) -> DatasetCardData:
    """What the head of a directory's README, or its .huggingface.yaml, says.

    Raises:
        UserError: If it cannot be read.
    """
    readme, separate = Path(root) / config.REPOCARD_FILENAME, Path(root) / config.REPOYAML_FILENAME
    try:
        has_head = readme.is_file() and readme.read_text(encoding="utf-8-sig").startswith("---")
        card = DatasetCard.load(readme).data if has_head else DatasetCardData()
        if separate.is_file():
            card = DatasetCardData(**card.to_dict() | (yaml.safe_load(separate.read_text(encoding="utf-8")) or {}))
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:
        raise bad_card(root, error) from error
    return card


def bad_card(root: str, error: Exception) -> UserError:
    """What is said of a README whose head cannot be read."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return UserError(f"The configurations in {root}/README.md cannot be read ({reason}): correct or remove them.")


def some(names: list[str] | tuple[str, ...], most: int = 3) -> str:
    """A few of many names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
