"""Pairs of a stream: a buffer's pictures, encoded as they are, and their captions as word pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import datasets
import numpy
import torch
from torch.nn import functional

from lit_pretrain.data.columns import values_beside
from lit_pretrain.data.images.image_folder import FOLDER
from lit_pretrain.data.images.picture_buffers import PictureBuffers, name_of
from lit_pretrain.data.pairs.pair_dataset import CaptionedPictures, PairDataset
from lit_pretrain.data.pairs.pair_parts import Empty
from lit_pretrain.data.pairs.pair_source import CAPTION
from lit_pretrain.data.stream_order import StreamedRow
from lit_pretrain.data.stream_source import Row, check_columns, column_of
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.document_buffers import NoSamples
from lit_pretrain.data.text.text_encoding import EncodedTexts, TextSettings, encode_texts
from lit_pretrain.errors import UserError

Captioned = TypeVar("Captioned", bound=CaptionedPictures)


@dataclass(frozen=True)
class PairBuffers:
    """Makes pairs of a buffer's rows; each row is a picture with its captions.

    Attributes:
        pictures: Makes its pictures.
        columns: Columns of captions.
        tokenizer: What makes word pieces.
        maximum_length: Tokens of a caption at most.
        empty: What becomes of empty captions, and of pictures without any.
    """

    pictures: PictureBuffers
    columns: tuple[str, ...]
    tokenizer: TextTokenizer
    maximum_length: int
    empty: Empty

    @property
    def least(self) -> int:
        """Any will do."""
        return 1

    def captions(self, row: StreamedRow) -> list[str]:
        """A row's captions in the order of their columns.

        Raises:
            UserError: If a column holds something else.
        """
        found: list[str] = []
        for column in self.columns:
            values = column_of(row.values, column, self._beside)
            names = self._names(column)
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, int) and names is not None:
                    value = names[value].replace("_", " ") if value >= 0 else None
                if value is not None and not isinstance(value, str):
                    raise UserError(
                        f"The column '{column}' of {self.pictures.rows.source} holds {type(value).__name__}, neither "
                        "texts nor class labels, nor lists of these: set data.caption_columns."
                    )
                found.append(value or "")
        return found

    def check(self, rows: Sequence[StreamedRow]) -> None:
        """Refuse columns that none of some rows has.

        Raises:
            UserError: With the nearest name.
        """
        for column in self.columns:
            values = (column_of(row.values, column, self._beside) for row in rows)
            found = next((value for value in values if value is not None), None)
            source = self.pictures.rows.source
            check_columns(rows[0].values, [column], source, "data.caption_columns", [found])

    def _names(self, column: str) -> list[str] | None:
        """The names of a column of class labels, or of lists of these."""
        feature = (self.pictures.rows.parts[0].features or {}).get(column)
        feature = getattr(feature, "feature", feature)
        return feature.names if isinstance(feature, datasets.ClassLabel) else None

    def _beside(self, row: Row, column: str) -> Any:
        """What stands in the file beside a folder's picture."""
        if self.pictures.rows.builder != FOLDER:
            return None
        ending, *keys = column.split(".")
        values = values_beside([name_of(row.get(self.pictures.column))], ending, keys)
        return None if values is None else values.to_pylist()[0]

    def encode(self, rows: Sequence[StreamedRow]) -> tuple[EncodedTexts, list[list[int]], list[str]]:
        """Some rows' captions as word pieces, those of each row that have any, and the texts.

        Raises:
            UserError: If captions or rows are empty that may not be.
        """
        lists = [self.captions(row) for row in rows]
        texts = [text for captions in lists for text in captions]
        data = datasets.Dataset.from_dict(
            {CAPTION: texts}, features=datasets.Features({CAPTION: datasets.Value("string")})
        )
        settings = TextSettings((CAPTION,), self.maximum_length)
        encoded = encode_texts(data, numpy.arange(len(texts)), self.tokenizer, settings)
        full = numpy.asarray(encoded.lengths) > settings.special_tokens
        chosen, start = [], 0
        for row, captions in zip(rows, lists, strict=True):
            own = [index for index in range(start, start + len(captions)) if full[index]]
            start += len(captions)
            if self.empty == "error" and (not own or len(own) < len(captions)):
                raise UserError(
                    f"Row {row.row} of shard {row.shard} of {self.pictures.rows.source} has an empty caption or none: "
                    "give it one, or set data.empty_captions to skip."
                )
            chosen.append(own)
        return encoded, chosen, texts

    def dataset(self, rows: Sequence[StreamedRow], kind: type[Captioned], **arguments: int) -> Captioned | NoSamples:
        """The rows that have a caption; `arguments` are more of its class's."""
        encoded, chosen, _ = self.encode(rows)
        members = numpy.array([place for place, own in enumerate(chosen) if own], dtype=numpy.int64)
        if len(members) == 0:
            return NoSamples()
        counts = numpy.array([len(chosen[place]) for place in members], dtype=numpy.int64)
        captions = numpy.concatenate([numpy.array(own, dtype=numpy.int64) for own in chosen])
        return kind(self.pictures.store(rows), members, encoded, captions, counts, **arguments)

    def make(self, rows: Sequence[StreamedRow], seed: int) -> PairDataset | NoSamples:
        """The pairs of a buffer: of each picture one caption, drawn."""
        return self.dataset(rows, PairDataset, seed=seed)

    def join(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch of the ends of two buffers, as long as its longest caption."""
        width = max(part["input_ids"].shape[1] for part in parts)
        batch: dict[str, Any] = {}
        for name in parts[0]:
            values = [part[name] for part in parts]
            if name in ("input_ids", "attention_mask"):
                filling = self.tokenizer.pad_id if name == "input_ids" else False
                values = [functional.pad(value, (0, width - value.shape[1]), value=filling) for value in values]
            if name != "padded":
                batch[name] = torch.cat(values)
        return batch | {"padded": not bool(batch["attention_mask"].all())}

    def settings(self) -> dict[str, Any]:
        """What the pairs of a buffer depend on beside its rows."""
        own = {"data.caption_columns": list(self.columns), "data.maximum_length": self.maximum_length}
        own |= {"data.empty_captions": self.empty, "tokenizer": self.tokenizer.hash}
        return self.pictures.settings() | own
