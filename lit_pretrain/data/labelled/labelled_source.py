"""Where labelled samples come from: the parts of a source, and its rows as texts or as pictures."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import datasets
import numpy

from lit_pretrain.data.columns import with_column
from lit_pretrain.data.images.image_folder import check_folder_labels
from lit_pretrain.data.images.image_source import EncodedPictures, ImageSource, open_pictures
from lit_pretrain.data.images.image_store import StorageSettings, StoredPictures, store_pictures
from lit_pretrain.data.images.pictures import opened, to_rgb
from lit_pretrain.data.labelled.label_facts import Task
from lit_pretrain.data.labelled.labelled_dataset import Samples
from lit_pretrain.data.labelled.labels import Labels, read_labels
from lit_pretrain.data.notices import say_once
from lit_pretrain.data.sources import (
    TEXT_BUILDERS,
    OpenedSource,
    Source,
    check_column,
    has_splits,
    open_source,
    source_name,
)
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.text_encoding import TextSettings, chunks_of_texts
from lit_pretrain.data.text.text_store import find_or_encode
from lit_pretrain.data.text.unknown_pieces import check_known, share_told, unknown_pieces
from lit_pretrain.errors import UserError

AnySource = TypeVar("AnySource", bound=Source)


@dataclass(frozen=True)
class LabelledTextSource(Source):
    """Where texts come from; of a text file, each line is one, which has no label."""

    builders: ClassVar[dict[str, str]] = TEXT_BUILDERS
    sample: ClassVar[str] = "sotu"
    needed: ClassVar[str] = "at least one row"
    kinds: ClassVar[str] = ", ".join(sorted(TEXT_BUILDERS))


def other_part(
    main: AnySource, part: str, path: str | None, data_files: str | list[str] | None, split: str | None
) -> AnySource | None:
    """The source of the validation or test data, or null if none is named.

    Args:
        main: Source of the training data.
        part: `validation` or `test`.
        path: As `data.path`; null with `data_files` takes the main source's builder, if it names one.
        data_files: As `data.data_files`.
        split: Split; by itself, another split of the main source.

    Raises:
        UserError: If a split is named of a source that has none.
    """
    if path is None and data_files is None:
        if split is None:
            return None
        if not has_splits(main):
            raise UserError(
                f"{source_name(main)} has no splits, so data.{part}_split cannot name one: set data.{part}_path or "
                f"data.{part}_data_files."
            )
        return replace(main, split=split, prefix=f"{part}_")
    builder = main.path if path is None and main.path in set(main.builders.values()) else path
    return replace(
        main,
        path=builder,
        name=None,
        data_files=data_files,
        prefix=f"{part}_",
        split=split or part,
        split_given=split is not None,
    )


class Contents(Protocol):
    """A source's rows, with what makes samples of them.

    Attributes:
        source: What a person knows the source by.
        data: The rows, with all their columns.
        fingerprint: Changes with their content and with nothing else.
        opened: The source.
    """

    source: str
    data: datasets.Dataset
    fingerprint: str
    opened: OpenedSource

    def labels(self, column: str, task: Task | None, separator: str | None = None) -> Labels:
        """The labels of all rows; see `read_labels`."""

    def make_ready(self, like: Any) -> None:
        """Do what takes long: decode pictures, to the size of those of `like`."""

    def there(self, rows: numpy.ndarray) -> numpy.ndarray:
        """Those of some rows that can be read."""

    def samples(self, rows: numpy.ndarray, tokenizer: Any) -> Samples:
        """Some rows, ready for batches."""

    def keys(self, rows: numpy.ndarray) -> numpy.ndarray | None:
        """(N,) integers of some rows that are equal for equal samples, or null if they are not known."""

    @property
    def columns(self) -> str:
        """What is read of the rows, in a few words."""

    def raw(self, rows: list[int]) -> list[dict[str, Any]]:
        """Some rows to show to people."""

    def named(self, rows: list[int]) -> dict[str, list[str]]:
        """Columns by which people know some rows."""


class TextContents:
    """Rows of texts or of pairs of texts.

    Args:
        source: Where they come from.
        settings: How they become sequences.
        cache_directory: Where local files are converted to, and tokenised texts are kept.

    Raises:
        UserError: If a file, a split or a column is missing, or a column holds no text.
    """

    def __init__(self, source: Source, settings: TextSettings, cache_directory: Path) -> None:
        rows = open_source(source, cache_directory / "huggingface")
        self.source, self.opened, self.settings = source_name(source), rows, settings
        self.data = rows.data
        self.kept = cache_directory / "labelled_texts"
        if self.data.column_names == ["text"] and len(settings.columns) == 1:
            # A text file, whatever the texts are called in the table that a model was trained on.
            self.settings = settings = replace(settings, columns=("text",))
        for column, setting in zip(settings.columns, ("text_column", "text_pair_column"), strict=False):
            self.data = with_column(replace(rows, data=self.data), column)
            check_column(self.data, column, self.source, f"data.{setting}")
            feature = self.data.features[column]
            kind = getattr(feature, "dtype", type(feature).__name__)
            if kind not in ("string", "large_string"):
                raise UserError(f"The column '{column}' of {self.source} holds {kind}, not text: set data.{setting}.")
        self.fingerprint = digest(rows.fingerprint, source.split, *settings.columns)

    def labels(self, column: str, task: Task | None, separator: str | None = None) -> Labels:
        """The labels of all rows."""
        return read_labels(with_column(self.opened, column), column, self.source, task, separator)

    def make_ready(self, like: Contents) -> None:
        """Nothing: texts are tokenised when it is known which ones are used."""

    def there(self, rows: numpy.ndarray) -> numpy.ndarray:
        """All of them."""
        return rows

    def samples(self, rows: numpy.ndarray, tokenizer: TextTokenizer) -> Samples:
        """Some rows tokenised."""
        samples = find_or_encode(self.data, rows, tokenizer, self.settings, self.fingerprint, self.kept)
        unknown, total = unknown_pieces(samples.tokens, tokenizer), len(samples.tokens)
        texts = (text or "" for start in range(0, len(rows), 100) for text in self._texts(rows[start : start + 100]))
        check_known(unknown, total, tokenizer, self.source, texts)
        say_once(f"{len(samples):,} of the rows of {self.source}: {total:,} word pieces, {share_told(unknown, total)}.")
        if samples.empty == len(samples) > 0:
            raise UserError(
                f"None of the {len(samples)} rows of {self.source} that are used has any text in "
                f"{' or '.join(repr(column) for column in self.settings.columns)}: set data.text_column to another "
                "column."
            )
        return samples

    def keys(self, rows: numpy.ndarray) -> numpy.ndarray:
        """(N,) integers of some rows that are equal for equal texts."""
        columns = self.settings.columns
        digests: list[bytes] = []
        for texts in chunks_of_texts(self.data.select_columns(list(columns)), rows, columns):
            joined = ("\0".join(text).encode(errors="surrogatepass") for text in zip(*texts, strict=True))
            digests += [hashlib.blake2b(text, digest_size=8).digest() for text in joined]
        return numpy.frombuffer(b"".join(digests), dtype=numpy.int64)

    @property
    def columns(self) -> str:
        """What is read of the rows, in a few words."""
        return f"texts of {' and '.join(repr(column) for column in self.settings.columns)}"

    def _texts(self, rows: numpy.ndarray) -> list[str | None]:
        """All texts of some rows."""
        part = self.data.select_columns(list(self.settings.columns))[rows]
        return [text for column in self.settings.columns for text in part[column]]

    def raw(self, rows: list[int]) -> list[dict[str, Any]]:
        """`text`, and `text_pair` if there is one."""
        part = self.data.select_columns(list(self.settings.columns))[rows]
        columns = zip(*(part[column] for column in self.settings.columns), strict=True)
        return [dict(zip(("text", "text_pair"), (text or "" for text in texts), strict=False)) for texts in columns]

    def named(self, rows: list[int]) -> dict[str, list[str]]:
        """`text`, and `text_pair` if there is one."""
        part = self.data.select_columns(list(self.settings.columns))[rows]
        names = zip(("text", "text_pair"), self.settings.columns, strict=False)
        return {name: [text or "" for text in part[column]] for name, column in names}


class PictureContents:
    """Rows of pictures.

    Args:
        source: Where they come from, without labels.
        storage: How they are kept.

    Raises:
        UserError: If a file, a split or a column is missing, or a column holds no pictures.
    """

    def __init__(self, source: ImageSource, storage: StorageSettings) -> None:
        self.origin, self.storage = source, storage
        self.source = source_name(source)
        self.opened = open_source(source, storage.directory / "huggingface")
        self.data = self.opened.data
        self.pictures: StoredPictures | None = None
        self.fingerprint = ""
        self._encoded: EncodedPictures | None = None

    def labels(self, column: str, task: Task | None, separator: str | None = None) -> Labels:
        """The labels of all rows."""
        check_folder_labels(self.opened, column, self.source)
        return read_labels(with_column(self.opened, column), column, self.source, task, separator)

    def make_ready(self, like: "PictureContents") -> None:
        """Decode the pictures, or find them decoded."""
        if self.pictures is None:
            self.pictures = store_pictures(self.origin, self.storage, None if like is self else like.pictures)
            self.fingerprint = self.pictures.fingerprint

    @property
    def stored(self) -> StoredPictures:
        """The pictures, once ready."""
        assert self.pictures is not None
        return self.pictures

    def there(self, rows: numpy.ndarray) -> numpy.ndarray:
        """Those that could be decoded."""
        return self.stored.store.rows[self.stored.places(rows)]

    def samples(self, rows: numpy.ndarray, tokenizer: None) -> Samples:
        """Some rows' pictures."""
        return self.stored.dataset(self.stored.places(rows))

    def keys(self, rows: numpy.ndarray) -> numpy.ndarray | None:
        """(N,) integers of some rows that are equal for equal pixels, if pictures are kept decoded."""
        return self.stored.keys(rows)

    @property
    def columns(self) -> str:
        """What is read of the rows, in a few words."""
        return f"pictures of '{self._pictures().column}'"

    def raw(self, rows: list[int]) -> list[dict[str, Any]]:
        """`image`: the whole picture, as large as it is."""
        return [{"image": to_rgb(opened(picture))} for picture in self._pictures().read(rows)]

    def named(self, rows: list[int]) -> dict[str, list[str]]:
        """`image`: the names of their files, empty where they have none."""
        return {"image": self._pictures().file_names(rows)}

    def _pictures(self) -> EncodedPictures:
        if self._encoded is None and self.pictures is not None:
            self._encoded = self.pictures.encoded
        if self._encoded is None:
            self._encoded = open_pictures(self.origin, self.storage.directory / "huggingface")
        return self._encoded


def digest(*parts: str) -> str:
    """16 hexadecimal characters over some parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
