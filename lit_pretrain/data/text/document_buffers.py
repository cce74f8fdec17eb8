"""Documents of a stream: of each buffer a small tokenised corpus, planned as the ordinary data module plans one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_pretrain.data.stream_order import StreamedRow
from lit_pretrain.data.stream_source import column_of
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.document_dataset import DocumentDataset, Layout
from lit_pretrain.data.text.sentence_pairs import PairSettings, least_documents
from lit_pretrain.data.text.token_cache import TokenCache, encode_documents, piece_type
from lit_pretrain.data.text.unknown_pieces import unknown_pieces
from lit_pretrain.errors import UserError


@dataclass(frozen=True)
class DocumentBuffers:
    """Makes sequences of a buffer's documents; see `DocumentDataModule` for the fields.

    Attributes:
        source: What a person knows the stream by.
    """

    source: str
    text_column: str
    tokenizer: TextTokenizer
    language: str
    sequence_length: int
    layout: Layout
    pairs: PairSettings
    packing: bool

    @property
    def least(self) -> int:
        """Documents without which there are no sequences."""
        return least_documents(self.pairs.random_next) if self.layout == "sentence_pairs" else 1

    def texts(self, rows: Sequence[StreamedRow]) -> list[str]:
        """The documents of some rows; a missing text is an empty one.

        Raises:
            UserError: If the column holds something else.
        """
        texts = []
        for row in rows:
            text = column_of(row.values, self.text_column)
            if text is not None and not isinstance(text, str):
                raise UserError(
                    f"The column '{self.text_column}' of {self.source} holds {type(text).__name__}, not text: set "
                    "data.text_column."
                )
            texts.append(text or "")
        return texts

    def corpus(self, rows: Sequence[StreamedRow]) -> TokenCache:
        """Some rows' documents as word pieces, in memory."""
        encoded = encode_documents(self.texts(rows), self.tokenizer, self.language)
        facts = {
            "documents": len(encoded.document_rows),
            "sentences": len(encoded.sentence_ends),
            "tokens": len(encoded.tokens),
            "unknown_pieces": unknown_pieces(encoded.tokens, self.tokenizer),
            "documents_without_sentences": len(rows) - len(encoded.document_rows),
        }
        tokens = encoded.tokens.astype(piece_type(self.tokenizer), copy=False)
        ends = encoded.sentence_ends, encoded.document_ends, encoded.document_rows
        return TokenCache(None, tokens, *ends, facts, encoded.document_keys)

    def dataset(self, corpus: TokenCache, seed: int, fixed: bool = False) -> DocumentDataset:
        """The sequences of a corpus."""
        documents = torch.arange(corpus.documents).numpy()
        shape = self.tokenizer, self.sequence_length, self.layout, self.pairs
        return DocumentDataset(corpus, documents, *shape, seed, fixed, self.packing, checked=False)

    def make(self, rows: Sequence[StreamedRow], seed: int) -> Any:
        """The sequences of a buffer's documents."""
        corpus = self.corpus(rows)
        # Documents that were empty after all; where pairs have no second one there is nothing to learn from them.
        return NoSamples() if corpus.documents < self.least else self.dataset(corpus, seed)

    def join(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch of the ends of two buffers."""
        return joined(parts)

    def settings(self) -> dict[str, Any]:
        """What the sequences of a buffer depend on beside its rows."""
        own = {"text_column": self.text_column, "language": self.language, "sequence_length": self.sequence_length}
        own |= {"layout": self.layout, "random_next": self.pairs.random_next, "short_share": self.pairs.short_share}
        return {f"data.{name}": value for name, value in own.items()} | {
            "data.packing": self.packing,
            "tokenizer": self.tokenizer.hash,
        }


class NoSamples:
    """A buffer without any."""

    def __len__(self) -> int:
        """None."""
        return 0

    def population(self, epoch: int) -> int:
        """None."""
        return 0

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        """Never asked."""
        raise IndexError(keys)


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several batches of equal fields as one; whether anything is `padded` is so of any."""
    batch: dict[str, Any] = {}
    for name, value in parts[0].items():
        values = [part[name] for part in parts]
        batch[name] = torch.cat(values) if isinstance(value, torch.Tensor) else any(values)
    return batch
