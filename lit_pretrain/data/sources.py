"""Any corpus through Hugging Face `datasets`: a hub name, local files, or a saved directory, read in the same way."""

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import datasets
import huggingface_hub
from filelock import FileLock

from lit_pretrain.errors import UserError, nearest

BUILDERS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "text",
    ".md": "text",
    ".arrow": "arrow",
}
DocumentSeparator = Literal["file", "blank_line"]
SECONDS_TO_REACH_THE_HUB = 5.0


@dataclass(frozen=True)
class DocumentSource:
    """Where documents come from; see `DocumentDataModule` for the fields."""

    path: str | None = None
    name: str | None = None
    data_files: str | list[str] | None = None
    split: str = "train"
    text_column: str = "text"
    document_separator: DocumentSeparator | None = None
    max_documents: int | None = None


def sample_path(name: str = "sotu") -> Path:
    """A bundled sample's parquet file."""
    return Path(str(resources.files("lit_pretrain.samples") / f"{name}.parquet"))


def open_documents(source: DocumentSource, cache_directory: Path) -> tuple[datasets.Dataset, str]:
    """Open a corpus.

    Args:
        source: What to read.
        cache_directory: Where local files are converted to.

    Returns:
        A data set with the text column, and a fingerprint that changes with its content and with nothing else.

    Raises:
        UserError: If a file, a split or a column is missing, the column is not text, or there is no row.
    """
    if source.path is not None and (Path(source.path) / "dataset_info.json").is_file():
        data = datasets.load_from_disk(source.path)
        fingerprint = f"saved:{data._fingerprint}"
    elif (local := local_files(source)) is not None:
        builder, files = local
        data = load_local(builder, files, source, cache_directory)
        fingerprint = content_hash(files, cache_directory)
    else:
        data = load_from_hub(source)
        fingerprint = f"hub:{data._fingerprint}"
    check_text_column(data, source)
    data = data.select_columns([source.text_column])
    if source.max_documents is not None:
        data = data.select(range(min(source.max_documents, len(data))))
    if len(data) == 0:
        raise UserError(f"{shown(source)} has no rows: give a corpus with at least one document.")
    parts = [fingerprint, source.split, source.text_column, str(source.document_separator), str(source.max_documents)]
    return data, hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def shown(source: DocumentSource) -> str:
    """The source as a person knows it."""
    return str(source.data_files or source.path or "the bundled sample")


def local_files(source: DocumentSource) -> tuple[str, list[str]] | None:
    """Builder and files of a local source, or null for a name on the hub."""
    if source.path is None and source.data_files is None:
        return "parquet", [str(sample_path())]
    patterns = [source.data_files] if isinstance(source.data_files, str) else list(source.data_files or [])
    builder = source.path if source.path in set(BUILDERS.values()) else None
    if source.path is not None and builder is None:
        path = Path(source.path)
        if not path.exists():
            looks_local = path.is_absolute() or source.path.startswith(".") or path.suffix in BUILDERS
            if looks_local or source.path.count("/") > 1:
                raise UserError(f"There is no file or directory {path}: check data.path.")
            return None
        patterns = patterns or [str(path)]
    if any("://" in pattern for pattern in patterns):
        return None
    files = sorted(file for pattern in patterns for file in expand(pattern))
    kinds = {BUILDERS.get(Path(file).suffix.lower()) for file in files} - {None}
    if builder is None and len(kinds) != 1:
        found = ", ".join(sorted({Path(file).suffix for file in files or everything_in(patterns)})) or "no file"
        raise UserError(
            f"{shown(source)} holds {found}: give files of one kind ({', '.join(sorted(set(BUILDERS)))}), or set "
            "data.path to parquet, csv, json or text and list data.data_files."
        )
    builder = builder or kinds.pop()
    return builder, [file for file in files if BUILDERS.get(Path(file).suffix.lower(), builder) == builder]


def everything_in(directories: list[str]) -> list[str]:
    """All files below directories, of whatever kind."""
    return [str(one) for name in directories if Path(name).is_dir() for one in Path(name).rglob("*") if one.is_file()]


def expand(pattern: str) -> list[str]:
    """Files of a path, a directory or a glob pattern."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        return [str(one) for one in path.rglob("*") if one.is_file() and one.suffix.lower() in BUILDERS]
    files = (
        [str(path)] if path.is_file() else [one for one in glob.glob(str(path), recursive=True) if os.path.isfile(one)]
    )
    if not files:
        raise UserError(f"No file matches {pattern}: check data.data_files or data.path.")
    return files


def load_local(builder: str, files: list[str], source: DocumentSource, cache_directory: Path) -> datasets.Dataset:
    """Read local files with the builder of their kind."""
    options = {}
    if builder == "text":
        separator = source.document_separator or ("file" if len(files) > 1 else "blank_line")
        options["sample_by"] = {"file": "document", "blank_line": "paragraph"}[separator]
    if builder == "csv" and files[0].endswith(".tsv"):
        options["sep"] = "\t"
    shown_bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            builder, data_files={source.split: files}, split=source.split, cache_dir=str(cache_directory), **options
        )
    except Exception as error:  # each format fails in its own way
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):
            raise UserError(f"{shown(source)} has no rows: give a corpus with at least one document.") from error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0][:200]
        raise UserError(
            f"{shown(source)} cannot be read as {builder} ({reason}): repair or remove the file."
        ) from error
    finally:
        if not shown_bars:
            datasets.enable_progress_bars()


def load_from_hub(source: DocumentSource) -> datasets.Dataset:
    """Read a data set by its hub name, or its copy in the cache if the hub cannot be reached."""
    with contextlib.ExitStack() as stack:
        reachable = hub_answers()
        if not reachable:
            stack.enter_context(offline())
        try:
            return datasets.load_dataset(source.path, source.name, data_files=source.data_files, split=source.split)
        except ValueError as error:
            message = str(error).splitlines()[0]
            if reachable:
                raise UserError(f"The data set '{source.path}' does not offer what was asked for: {message}") from error
            reason: Exception = error
        except Exception as error:  # the hub's client raises many kinds
            reason = error
    state = type(reason).__name__ if reachable else "the hub cannot be reached, and no copy is in the cache"
    raise UserError(
        f"'{source.path}' is neither a file or directory here nor a data set that the Hugging Face hub gave ({state}): "
        "check data.path, or the network."
    ) from reason


def hub_answers() -> bool:
    """Whether the hub can be reached within seconds; its own client would try for half a minute."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    session = huggingface_hub.utils.get_session()
    try:
        session.head(huggingface_hub.constants.ENDPOINT, timeout=SECONDS_TO_REACH_THE_HUB)
    except Exception:  # without a network: a different one with every version of its client
        return False
    return True


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let the hub's client look into its cache only."""
    places = ((datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE"))
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def check_text_column(data: datasets.Dataset, source: DocumentSource) -> None:
    """The text column must be there and hold text."""
    columns = list(data.column_names)
    if source.text_column not in columns:
        raise UserError(
            f"{shown(source)} has no column '{source.text_column}'{nearest(source.text_column, columns)}: its columns "
            f"are {', '.join(columns)}; set data.text_column."
        )
    feature = data.features[source.text_column]
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise UserError(
            f"The column '{source.text_column}' of {shown(source)} holds {kind}, not text: set data.text_column."
        )


def content_hash(files: list[str], cache_directory: Path) -> str:
    """Hash of the files' bytes, remembered by size and time of change, so that large corpora are read once."""
    cache_directory.mkdir(parents=True, exist_ok=True)
    memory_path = cache_directory / "content-hashes.json"
    with FileLock(f"{memory_path}.lock"):
        try:
            memory = json.loads(memory_path.read_text())
        except (OSError, json.JSONDecodeError):
            memory = {}
        hashes = []
        for file in files:
            state = os.stat(file)
            key = f"{os.path.abspath(file)}:{state.st_size}:{state.st_mtime_ns}"
            if key not in memory:
                with open(file, "rb") as stream:
                    memory[key] = hashlib.file_digest(stream, "sha256").hexdigest()
            hashes.append(memory[key])
        partial = memory_path.with_suffix(".partial")
        partial.write_text(json.dumps(memory))
        partial.replace(memory_path)
    return "files:" + hashlib.sha256("\n".join(hashes).encode()).hexdigest()
