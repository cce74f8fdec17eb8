"""A tokenised corpus on disk, memory-mapped: tokens, where sentences end, where documents end.

It is built once (`disk_cache.py`), streaming, so a corpus larger than the memory is no problem. Its name is a
fingerprint of everything that the content depends on.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy
import sentencex

from lit_pretrain.data.disk_cache import FACTS, build_once, build_progress, write_array
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.unknown_pieces import unknown_pieces
from lit_pretrain.errors import UserError

FORMAT = 3
# Characters whose tokens are held in memory at a time.
CHUNK_CHARACTERS = 4_000_000
# Of a large corpus so many parts of so many word pieces tell how frequent each is.
COUNTED_PARTS, COUNTED_PART = 64, 65_536


@dataclass
class TokenCache:
    """The arrays of a tokenised corpus.

    Attributes:
        directory: Where they lie.
        tokens: (T,) word pieces of all sentences in order.
        sentence_ends: (S,) number of tokens up to the end of each sentence.
        document_ends: (N,) number of sentences up to the end of each document.
        document_rows: (N,) row of the source that each document comes from.
        facts: What was counted while it was built.
        document_keys: (N,) integers that are equal for equal word pieces.
    """

    directory: Path
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
        return numpy.concatenate(([0], self.sentence_ends[self.document_ends - 1]))


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
    build_once(directory, lambda partial: build(data, text_column, tokenizer, partial, language), "tokenised corpus")
    return TokenCache.open(directory)


def build(data: Any, text_column: str, tokenizer: TextTokenizer, directory: Path, language: str) -> None:
    """Tokenise every document into `directory`, holding a few million characters at a time."""
    directory.mkdir(parents=True)
    dtype = numpy.dtype(numpy.uint16 if tokenizer.vocabulary_size <= 2**16 else numpy.uint32)
    names = ("tokens", "sentence_ends", "document_ends", "document_rows", "document_keys")
    files = {name: (directory / f"{name}.bin").open("wb") for name in names}
    total_tokens = total_sentences = documents = dropped = unknown = 0
    try:
        with build_progress("documents") as progress:
            task = progress.add_task("Tokenising", total=len(data))
            for rows, texts in chunks(data, text_column):
                sentences = [split_sentences(text, language) for text in texts]
                pieces = iter(tokenizer.encode_batch(list(chain.from_iterable(sentences))))
                kept, sentence_lengths, sentence_counts, kept_rows, keys = [], [], [], [], []
                for row, parts in zip(rows, sentences, strict=True):
                    # A sentence of nothing but characters that the tokenizer drops has no pieces.
                    ids = [sentence_pieces for sentence_pieces in (next(pieces) for _ in parts) if sentence_pieces]
                    if not ids:
                        dropped += 1
                        continue
                    kept += ids
                    sentence_lengths += [len(sentence_pieces) for sentence_pieces in ids]
                    sentence_counts.append(len(ids))
                    kept_rows.append(row)
                    content = numpy.fromiter(chain.from_iterable(ids), dtype)
                    keys.append(hashlib.blake2b(content.data, digest_size=8).digest())
                ends = total_tokens + numpy.cumsum(sentence_lengths, dtype=numpy.int64)
                counts = total_sentences + numpy.cumsum(sentence_counts, dtype=numpy.int64)
                tokens = numpy.fromiter(chain.from_iterable(kept), dtype)
                unknown += unknown_pieces(tokens, tokenizer)
                write_array(files["tokens"], tokens)
                write_array(files["sentence_ends"], ends)
                write_array(files["document_ends"], counts)
                write_array(files["document_rows"], numpy.array(kept_rows, dtype=numpy.int64))
                files["document_keys"].write(b"".join(keys))
                total_tokens += sum(sentence_lengths)
                total_sentences += len(sentence_lengths)
                documents += len(kept_rows)
                progress.advance(task, len(rows))
    finally:
        for file in files.values():
            file.close()
    if documents == 0:
        raise UserError(
            f"None of the {len(data)} documents has a sentence in '{text_column}': the text is empty or white space."
        )
    facts = {
        "dtype": dtype.str,
        "documents": documents,
        "sentences": total_sentences,
        "tokens": total_tokens,
        "unknown_pieces": unknown,
        "documents_without_sentences": dropped,
    }
    (directory / FACTS).write_text(json.dumps(facts) + "\n")


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
    characters = 0
    for start in range(0, len(data), 100):
        for offset, text in enumerate(data[start : start + 100][text_column]):
            rows.append(start + offset)
            texts.append(text or "")
            characters += len(texts[-1])
        if characters >= CHUNK_CHARACTERS:
            yield rows, texts
            rows, texts, characters = [], [], 0
    if rows:
        yield rows, texts
