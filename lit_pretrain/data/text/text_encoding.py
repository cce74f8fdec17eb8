"""Texts and pairs of texts as word pieces in memory, cut to what a sequence holds.

A sequence is [CLS] text [SEP], or [CLS] text [SEP] other text [SEP] (BERT, arXiv:1810.04805; RoBERTa has two tokens
between them). Of a text that is too
long its beginning is kept, or its beginning and its end, which Sun et al. 2019 (arXiv:1905.05583) found best for
reviews; as there, a quarter is for the beginning (128 of 510). Of a pair, the longer text loses pieces until both are
equally long, then both do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy
import torch
from torch import Tensor

from lit_pretrain.data.labelled.labelled_sampler import padded_length
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.tokenizers_by_kind import load_tokenizer
from lit_pretrain.errors import UserError

Truncation = Literal["head", "head_tail"]
# Characters whose pieces are held as Python's own numbers at a time.
CHUNK_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class TextSettings:
    """How texts become sequences.

    Attributes:
        columns: Column of the texts, or of the first texts and the second ones.
        maximum_length: L, tokens of a sequence at most, special tokens included.
        truncation: What is kept of a single text that is too long.
    """

    columns: tuple[str, ...]
    maximum_length: int
    truncation: Truncation = "head"

    @property
    def special_tokens(self) -> int:
        """[CLS], and [SEP] after each text."""
        return 1 + len(self.columns)

    def special_tokens_of(self, tokenizer: TextTokenizer) -> int:
        """As `special_tokens`, with all that a tokenizer puts between two texts."""
        return self.special_tokens + (len(self.columns) - 1) * (tokenizer.separators - 1)


@dataclass(frozen=True)
class EncodedTexts:
    """Some rows' texts as word pieces.

    Attributes:
        rows: (N,) row of the source of each sample.
        tokens: (T,) pieces of all samples one after the other, of a pair's two texts one after the other.
        ends: (N,) pieces up to the end of each sample.
        firsts: (N,) pieces of each sample's first text.
        lengths: (N,) tokens of each sample, special tokens included.
        truncated: Samples that were too long.
        empty: Samples without any piece; they are [CLS] and [SEP] alone.
        settings: How they were made.
        special_ids: Ids of [CLS], [SEP] and [PAD].
        separators: How many [SEP] stand between two texts.
    """

    rows: numpy.ndarray
    tokens: numpy.ndarray
    ends: numpy.ndarray
    firsts: numpy.ndarray
    lengths: numpy.ndarray
    truncated: int
    empty: int
    settings: TextSettings
    special_ids: tuple[int, int, int]
    separators: int = 1

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.rows)

    def batch(self, indices: numpy.ndarray) -> dict[str, Any]:
        """Some samples, padded to the longest of them.

        Args:
            indices: (B,) which.

        Returns:
            `input_ids`, `attention_mask`, `token_type_ids` (B, L'), L' the longest's length up to a multiple of 4,
            `sample_id` (B,) rows of the source, and whether anything is `padded`.
        """
        lengths = self.lengths[indices]
        width = padded_length(int(lengths.max()), self.settings.maximum_length)
        cls_id, sep_id, pad_id = self.special_ids
        input_ids = numpy.full((len(indices), width), pad_id, dtype=numpy.int64)
        segments = numpy.zeros_like(input_ids)
        input_ids[:, 0] = cls_id
        pair = len(self.settings.columns) == 2
        for row, (index, length) in enumerate(zip(indices, lengths, strict=True)):
            start, end, first = self.ends[index - 1] if index else 0, self.ends[index], self.firsts[index]
            input_ids[row, 1 : first + 1] = self.tokens[start : start + first]
            input_ids[row, first + 1] = sep_id
            if pair:
                second = first + 1 + self.separators
                input_ids[row, first + 1 : second] = sep_id
                input_ids[row, second : length - 1] = self.tokens[start + first : end]
                input_ids[row, length - 1] = sep_id
                segments[row, second:length] = 1
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(numpy.arange(width) < lengths[:, None]),
            "token_type_ids": torch.from_numpy(segments),
            "sample_id": torch.from_numpy(self.rows[indices]),
            "padded": bool((lengths < width).any()),
        }


def encode_texts(
    data: datasets.Dataset, rows: numpy.ndarray, tokenizer: TextTokenizer, settings: TextSettings
) -> EncodedTexts:
    """Tokenise some rows, holding a few million characters at a time.

    Args:
        data: Rows with the columns of texts; a missing text is an empty one.
        rows: (N,) which.
        tokenizer: What makes the pieces.
        settings: How they become sequences.
    """
    dtype = numpy.dtype(numpy.uint16 if tokenizer.vocabulary_size <= 2**16 else numpy.uint32)
    special_tokens = settings.special_tokens_of(tokenizer)
    room = settings.maximum_length - special_tokens
    parts: list[numpy.ndarray] = []
    firsts: list[int] = []
    pieces: list[int] = []
    truncated = empty = 0
    for columns in chunks_of_texts(data.select_columns(list(settings.columns)), rows, settings.columns):
        kept: list[int] = []
        for ids in zip(*(tokenizer.encode_batch(texts) for texts in columns), strict=True):
            total = sum(len(piece_ids) for piece_ids in ids)
            empty += total == 0
            if total > room:
                truncated += 1
                ids = shorten_pair(*ids, room) if len(ids) == 2 else (shorten(ids[0], room, settings.truncation),)
            firsts.append(len(ids[0]))
            pieces.append(sum(len(piece_ids) for piece_ids in ids))
            for piece_ids in ids:
                kept += piece_ids
        parts.append(numpy.array(kept, dtype=dtype))
    counts = numpy.array(pieces, dtype=numpy.int64)
    return EncodedTexts(
        rows=rows,
        tokens=numpy.concatenate([*parts, numpy.zeros(0, dtype)]),
        ends=numpy.cumsum(counts),
        firsts=numpy.array(firsts, dtype=numpy.int64),
        lengths=counts + special_tokens,
        truncated=truncated,
        empty=empty,
        settings=settings,
        special_ids=(tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id),
        separators=tokenizer.separators,
    )


def batch_of(columns: dict[str, list[str]], tokenizer: TextTokenizer, settings: TextSettings) -> dict[str, Tensor]:
    """Texts at hand, or pairs of texts, as one batch; see `EncodedTexts.batch`.

    Args:
        columns: Texts by the names in `settings`.
        tokenizer: What makes the pieces.
        settings: How they become sequences.
    """
    rows = datasets.Dataset.from_dict(columns)
    everything = numpy.arange(len(rows))
    return encode_texts(rows, everything, tokenizer, settings).batch(everything)


def shorten(ids: list[int], room: int, truncation: Truncation) -> list[int]:
    """What is kept of a text's pieces."""
    head = room if truncation == "head" else room // 4
    return ids[:head] + ids[len(ids) - (room - head) :]


def shorten_pair(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """The beginnings of two texts that fit together, pieces taken from the longer one first."""
    keep = min(len(first), max(room - room // 2, room - len(second)))
    return first[:keep], second[: room - keep]


def chunks_of_texts(
    data: datasets.Dataset, rows: numpy.ndarray, columns: tuple[str, ...], at_once: int = 100
) -> Iterator[tuple[list[str], ...]]:
    """Texts of each column of as many rows as hold a few million characters."""
    gathered: tuple[list[str], ...] = tuple([] for _ in columns)
    characters = 0
    for start in range(0, len(rows), at_once):
        part = data[rows[start : start + at_once]]
        for texts, column in zip(gathered, columns, strict=True):
            texts_of_part = [text or "" for text in part[column]]
            texts += texts_of_part
            characters += sum(map(len, texts_of_part))
        if characters >= CHUNK_CHARACTERS:
            yield gathered
            gathered, characters = tuple([] for _ in columns), 0
    if gathered[0]:
        yield gathered


def choose_tokenizer(
    path: str | None, own_tokenizer: TextTokenizer | None, model_tokenizer: TextTokenizer | None
) -> TextTokenizer:
    """The tokenizer that was given, or the model's.

    Args:
        path: What was given, or null.
        own_tokenizer: One that is used already.
        model_tokenizer: The model's, or null if it has none or there is no model.

    Raises:
        UserError: If there is none, or the model was trained with another than was given.
    """
    if path is None:
        tokenizer = model_tokenizer or own_tokenizer
        if tokenizer is None:
            raise UserError(
                "There is no tokenizer for the texts, since the model brings none: set data.tokenizer to the directory "
                "of one, or start from a model that was trained on text."
            )
        return tokenizer
    named_tokenizer = own_tokenizer or load_tokenizer(path)
    if model_tokenizer is not None and model_tokenizer.hash != named_tokenizer.hash:
        raise UserError(
            f"The model's tokenizer ({model_tokenizer.hash}) is not the one at {path} ({named_tokenizer.hash}): set "
            "data.tokenizer to null to take the model's own."
        )
    return named_tokenizer
