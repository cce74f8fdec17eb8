"""A corpus of documents from any source: which column is text, and where documents of a text file end."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import datasets

from lit_pretrain.data.columns import with_column
from lit_pretrain.data.sources import TABLES, Source, check_column, no_rows, open_source, shown
from lit_pretrain.errors import UserError

BUILDERS = TABLES | {".txt": "text", ".md": "text"}
DocumentSeparator = Literal["file", "blank_line"]


@dataclass(frozen=True)
class DocumentSource(Source):
    """Where documents come from; see `DocumentDataModule` for the fields."""

    text_column: str = "text"
    document_separator: DocumentSeparator | None = None
    max_documents: int | None = None

    builders: ClassVar[dict[str, str]] = BUILDERS
    sample: ClassVar[str] = "sotu"
    needed: ClassVar[str] = "a corpus with at least one document"
    kinds: ClassVar[str] = ", ".join(sorted(BUILDERS))

    def options(self, builder: str, files: list[str]) -> dict[str, str]:
        """Of text files, what a document is."""
        options = super().options(builder, files)
        if builder != "text":
            return options
        separator = self.document_separator or ("file" if len(files) > 1 else "blank_line")
        return options | {"sample_by": {"file": "document", "blank_line": "paragraph"}[separator]}


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
    opened = open_source(source, cache_directory)
    data = with_column(opened, source.text_column)
    check_text_column(data, source)
    data = data.select_columns([source.text_column])
    if source.max_documents is not None:
        data = data.select(range(min(source.max_documents, len(data))))
    if len(data) == 0:
        raise no_rows(source)
    parts = [
        opened.fingerprint,
        source.split,
        source.text_column,
        str(source.document_separator),
        str(source.max_documents),
    ]
    return data, hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def check_text_column(data: datasets.Dataset, source: DocumentSource) -> None:
    """The text column must be there and hold text."""
    check_column(data, source.text_column, shown(source), "data.text_column")
    feature = data.features[source.text_column]
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise UserError(
            f"The column '{source.text_column}' of {shown(source)} holds {kind}, not text: set data.text_column."
        )
