"""A tokenised corpus on disk, memory-mapped: tokens, where sentences end, where documents end.

It is built once (`disk_cache.py`), streaming, so a corpus larger than the memory is no problem. Its name is a
fingerprint of everything that the content depends on.
"""

import hashlib
import json
import mmap
import pickle
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy
import sentencex

from lit_pretrain.data.disk_cache import FACTS, build_once, build_parts, build_progress, workers, write_array
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.unknown_pieces import unknown_pieces
from lit_pretrain.errors import UserError

FORMAT = 3
CONTENT = "tokenised corpus"
ARRAYS = ("tokens", "sentence_ends", "document_ends", "document_rows", "document_keys")
# Characters whose tokens are held in memory at a time.
CHUNK_CHARACTERS = 2_000_000
# Characters after which a mapped source is mapped anew.
REOPENED_AFTER = 30_000_000
# Documents that are looked up at a time.
DOCUMENTS_AT_ONCE = 1 << 16
# Of a large corpus so many parts of so many word pieces tell how frequent each is.
COUNTED_PARTS, COUNTED_PART = 64, 65_536


@dataclass
class TokenCache:
    """The arrays of a tokenised corpus.

    Attributes:
        directory: Where they lie; null where they are in memory alone.
        tokens: (T,) word pieces of all sentences in order.
        sentence_ends: (S,) number of tokens up to the end of each sentence.
        document_ends: (N,) number of sentences up to the end of each document.
        document_rows: (N,) row of the source that each document comes from.
        facts: What was counted while it was built.
        document_keys: (N,) integers that are equal for equal word pieces.
    """

    directory: Path | None
    tokens: numpy.ndarray
    sentence_ends: numpy.ndarray
    document_ends: numpy.ndarray
    document_rows: numpy.ndarray
    facts: dict[str, int]
    document_keys: numpy.ndarray | None = None

    @classmethod
    def open(cls, directory: Path) -> "TokenCache":
        """Map a finished cache."""
        facts = json.loads((directory / FACTS).read_text())
        dtype = numpy.dtype(facts.pop("dtype"))
        tokens, sentence_ends, document_ends, document_rows, document_keys = (
            numpy.memmap(directory / f"{name}.bin", dtype=kind, mode="r")
            for name, kind in (
                ("tokens", dtype),
                ("sentence_ends", numpy.int64),
                ("document_ends", numpy.int64),
                ("document_rows", numpy.int64),
                ("document_keys", numpy.int64),
            )
        )
        return cls(directory, tokens, sentence_ends, document_ends, document_rows, facts, document_keys)

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes map the files themselves rather than receive the whole corpus."""
        if self.directory is None:
            return TokenCache, tuple(vars(self).values())
        return TokenCache.open, (self.directory,)

    def piece_shares(self, vocabulary_size: int) -> numpy.ndarray:
        """(V,) share of each word piece, of a large corpus by parts from all over it."""
        places = numpy.linspace(0, max(0, len(self.tokens) - COUNTED_PART), COUNTED_PARTS).astype(int)
        whole = len(self.tokens) <= COUNTED_PART * COUNTED_PARTS
        parts = [self.tokens] if whole else [self.tokens[place : place + COUNTED_PART] for place in places]
        counts = sum(numpy.bincount(part, minlength=vocabulary_size) for part in parts)
        return numpy.asarray(counts / max(1, int(numpy.sum(counts))))

    @property
    def documents(self) -> int:
        """Number of documents with at least one sentence."""
        return len(self.document_ends)

    def sentence_offsets(self, document: int) -> numpy.ndarray:
        """Token offsets of a document's sentences: (sentences + 1,), the last being its end."""
        first = int(self.document_ends[document - 1]) if document else 0
        last = int(self.document_ends[document])
        start = int(self.sentence_ends[first - 1]) if first else 0
        return numpy.concatenate(([start], self.sentence_ends[first:last]))

    def document_offsets(self) -> numpy.ndarray:
        """Token offsets of all documents: (N + 1,)."""
        offsets = numpy.zeros(self.documents + 1, numpy.int64)
        for start in range(0, self.documents, DOCUMENTS_AT_ONCE):
            ends = self.document_ends[start : start + DOCUMENTS_AT_ONCE]
            offsets[start + 1 : start + 1 + len(ends)] = self.sentence_ends[ends - 1]
            let_go(self.sentence_ends)
        return offsets


def let_go(array: numpy.ndarray) -> None:
    """Have what was read of a mapped array be in the system's cache alone, rather than in this process's memory too."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        # What is mapped read-only is read from the file again.
        mapped.madvise(mmap.MADV_DONTNEED)


def cache_fingerprint(source_fingerprint: str, tokenizer: TextTokenizer, language: str) -> str:
    """The name of a cache: 16 hexadecimal characters over source, tokenizer, sentence rules and format."""
    parts = [str(FORMAT), source_fingerprint, tokenizer.hash, language]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def open_or_build(
    data: Any, text_column: str, tokenizer: TextTokenizer, directory: Path, language: str = "en"
) -> TokenCache:
    """Map the cache in `directory`, building it first if it is not there.

    Args:
        data: Rows with a text column (a `datasets.Dataset`).
        text_column: Its name.
        tokenizer: What makes the pieces.
        directory: The cache's own, named by its fingerprint.
        language: Whose rules split sentences.

    Raises:
        UserError: If no document has a sentence, or the disk is full.
    """

    def build_all(partial: Path) -> None:
        if workers.get() is None:
            build(data, text_column, tokenizer, partial, language)
            return
        size = data.data.nbytes * len(data) / max(1, data.data.num_rows)
        build_by_parts(data, text_column, tokenizer, language, size, partial, directory)

    build_once(directory, build_all, CONTENT)
    return TokenCache.open(directory)


class EmptyCorpusError(UserError):
    """No document has a sentence."""


def build_by_parts(
    data: Any, text_column: str, tokenizer: TextTokenizer, language: str, size: float, directory: Path, final: Path
) -> None:
    """As `build`, by other processes, each of which tokenises some of the documents; their arrays are joined here.

    Args:
        data: As there.
        text_column: As there.
        tokenizer: As there.
        language: As there.
        size: Bytes of the documents.
        directory: Which is made.
        final: What it will be called, beside which the parts lie.

    Raises:
        UserError: As there.
    """
    parts = build_parts(final, len(data), size, CONTENT, build_some, data, text_column, tokenizer, language)
    directory.mkdir(parents=True)
    total: dict[str, Any] = {}
    with ExitStack() as stack:
        files = {name: stack.enter_context((directory / f"{name}.bin").open("wb")) for name in ARRAYS}
        for rows, place in parts:
            before = {
                "sentence_ends": total.get("tokens", 0),
                "document_ends": total.get("sentences", 0),
                "document_rows": rows.start,
            }
            for name, file in files.items():
                path = place / f"{name}.bin"
                if not path.is_file():
                    continue
                if name in before:
                    write_array(file, before[name] + numpy.fromfile(path, numpy.int64))
                else:
                    with path.open("rb") as part:
                        shutil.copyfileobj(part, file, 1 << 24)
            for name, value in json.loads((place / FACTS).read_text()).items():
                total[name] = value if isinstance(value, str) else total.get(name, 0) + value
    if not total.get("documents"):
        raise EmptyCorpusError(
            f"None of the {len(data)} documents has a sentence in '{text_column}': the text is empty or white space."
        )
    (directory / FACTS).write_text(json.dumps(total) + "\n")


def build_some(
    data: Any, text_column: str, tokenizer: TextTokenizer, language: str, threads: int, rows: range, directory: Path
) -> None:
    """A part of `build_by_parts`: some rows; threads are as the process was started with."""
    try:
        build(data.select(rows), text_column, tokenizer, directory, language)
    except EmptyCorpusError:
        (directory / FACTS).write_text(json.dumps({"documents_without_sentences": len(rows)}) + "\n")


def build(data: Any, text_column: str, tokenizer: TextTokenizer, directory: Path, language: str) -> None:
    """Tokenise every document into `directory`, holding a few million characters at a time."""
    directory.mkdir(parents=True)
    dtype = piece_type(tokenizer)
    names = ("tokens", "sentence_ends", "document_ends", "document_rows", "document_keys")
    files = {name: (directory / f"{name}.bin").open("wb") for name in names}
    total_tokens = total_sentences = documents = unknown = 0
    try:
        with build_progress("documents") as progress:
            task = progress.add_task("Tokenising", total=len(data))
            for seen, part in encoded_parts(chunks(data, text_column), tokenizer, language):
                unknown += unknown_pieces(part.tokens, tokenizer)
                write_array(files["tokens"], part.tokens)
                write_array(files["sentence_ends"], total_tokens + part.sentence_ends)
                write_array(files["document_ends"], total_sentences + part.document_ends)
                write_array(files["document_rows"], part.document_rows)
                write_array(files["document_keys"], part.document_keys)
                total_tokens += len(part.tokens)
                total_sentences += len(part.sentence_ends)
                documents += len(part.document_rows)
                progress.advance(task, seen)
    finally:
        for file in files.values():
            file.close()
    if documents == 0:
        raise EmptyCorpusError(
            f"None of the {len(data)} documents has a sentence in '{text_column}': the text is empty or white space."
        )
    facts = {
        "dtype": dtype.str,
        "documents": documents,
        "sentences": total_sentences,
        "tokens": total_tokens,
        "unknown_pieces": unknown,
        "documents_without_sentences": len(data) - documents,
    }
    (directory / FACTS).write_text(json.dumps(facts) + "\n")


def piece_type(tokenizer: TextTokenizer) -> numpy.dtype:
    """The smallest integers that hold all pieces of a tokenizer."""
    return numpy.dtype(numpy.uint16 if tokenizer.vocabulary_size <= 2**16 else numpy.uint32)


@dataclass(frozen=True)
class EncodedDocuments:
    """Some documents as word pieces; those without any are left out.

    Attributes:
        tokens: (T,) word pieces of all sentences in order.
        sentence_ends: (S,) number of tokens up to the end of each sentence.
        document_ends: (N,) number of sentences up to the end of each document.
        document_rows: (N,) row of the source that each document comes from.
        document_keys: (N,) integers that are equal for equal word pieces.
    """

    tokens: numpy.ndarray
    sentence_ends: numpy.ndarray
    document_ends: numpy.ndarray
    document_rows: numpy.ndarray
    document_keys: numpy.ndarray


def encoded_parts(
    parts: Iterable[tuple[list[int], list[str]]], tokenizer: TextTokenizer, language: str
) -> Iterator[tuple[int, EncodedDocuments]]:
    """Tokenise documents, some at a time: while some are made word pieces, those before and after are worked at too.

    The library takes all cores for word pieces, and Python one for everything else, which would have the others wait.

    Args:
        parts: Row numbers and texts.
        tokenizer: What makes the pieces.
        language: Whose rules split sentences.

    Returns:
        Of each part how many rows it had, and its documents.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: tuple[list[int], list[int], Future[list[list[int]]]] | None = None
        for rows, texts in parts:
            sentences = [split_sentences(text, language) for text in texts]
            counts = [len(some) for some in sentences]
            pieces = pool.submit(tokenizer.encode_batch, list(chain.from_iterable(sentences)))
            if waiting is not None:
                yield len(waiting[0]), gathered(*waiting[:2], waiting[2].result(), tokenizer)
            waiting = rows, counts, pieces
        if waiting is not None:
            yield len(waiting[0]), gathered(*waiting[:2], waiting[2].result(), tokenizer)


def encode_documents(texts: list[str], tokenizer: TextTokenizer, language: str) -> EncodedDocuments:
    """Tokenise a few documents at once; their rows are their places among them."""
    sentences = [split_sentences(text, language) for text in texts]
    pieces = tokenizer.encode_batch(list(chain.from_iterable(sentences)))
    return gathered(range(len(texts)), [len(some) for some in sentences], pieces, tokenizer)


def gathered(
    rows: Sequence[int], counts: Sequence[int], pieces: Sequence[list[int]], tokenizer: TextTokenizer
) -> EncodedDocuments:
    """Sentences' word pieces as documents.

    Args:
        rows: (R,) row of the source of each document.
        counts: (R,) how many sentences each has.
        pieces: Of all sentences, one after the other.
        tokenizer: What made them.
    """
    dtype = piece_type(tokenizer)
    lengths: list[int] = []
    kept_counts, kept_rows, contents, keys = [], [], [numpy.zeros(0, dtype)], []
    start = 0
    for row, count in zip(rows, counts, strict=True):
        # A sentence of nothing but characters that the tokenizer drops has no pieces.
        ids = [some for some in pieces[start : start + count] if some]
        start += count
        if not ids:
            continue
        lengths += map(len, ids)
        kept_counts.append(len(ids))
        kept_rows.append(row)
        contents.append(numpy.fromiter(chain.from_iterable(ids), dtype))
        keys.append(hashlib.blake2b(contents[-1].data, digest_size=8).digest())
    return EncodedDocuments(
        tokens=numpy.concatenate(contents),
        sentence_ends=numpy.cumsum(lengths, dtype=numpy.int64),
        document_ends=numpy.cumsum(kept_counts, dtype=numpy.int64),
        document_rows=numpy.array(kept_rows, dtype=numpy.int64),
        document_keys=numpy.frombuffer(b"".join(keys), dtype=numpy.int64),
    )


def split_sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of a text in order, without surrounding white space; none for an empty text.

    The rules are those of the Wikimedia Foundation's `sentencex`, for many languages and without models.

    Args:
        text: A document.
        language: Two-letter code whose abbreviations and marks are used.
    """
    return [stripped for sentence in sentencex.segment(language, text) if (stripped := sentence.strip())]


def chunks(data: Any, text_column: str) -> Iterator[tuple[list[int], list[str]]]:
    """Row numbers and texts of as many rows as hold a few million characters; a missing text is an empty one."""
    rows: list[int] = []
    texts: list[str] = []
    characters = since = 0
    reader = reopened(data)
    for start in range(0, len(data), 100):
        for offset, text in enumerate(reader[start : start + 100][text_column]):
            rows.append(start + offset)
            texts.append(text or "")
            characters += len(texts[-1])
        if characters >= CHUNK_CHARACTERS:
            yield rows, texts
            since += characters
            rows, texts, characters = [], [], 0
            if since >= REOPENED_AFTER:
                reader, since = reopened(data), 0
    if rows:
        yield rows, texts


def reopened(data: Any) -> Any:
    """The same rows mapped anew, if they lie on the disk: what was read of a mapped file stays in the memory till then.

    A corpus of gigabytes would otherwise be resident as a whole in the end, if the machine has room for it.
    """
    table = getattr(data, "data", None)
    blocks = [block for row in getattr(table, "blocks", [[table]]) for block in row]
    if all(isinstance(block, datasets.table.MemoryMappedTable) for block in blocks):
        return pickle.loads(pickle.dumps(data))  # noqa: S301 (what was written a moment ago)
    return data
