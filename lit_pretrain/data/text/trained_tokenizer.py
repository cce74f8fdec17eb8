"""A WordPiece tokenizer trained on a data module's own texts, once."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_pretrain.data.disk_cache import FACTS, build_once
from lit_pretrain.data.notices import say_once
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer

# Enough text for any vocabulary; a larger corpus is read at even distances.
TOKENIZER_DOCUMENTS = 200_000


@dataclass(frozen=True)
class TrainedTokenizer:
    """How a tokenizer is trained; see `WordPieceTokenizer.train`."""

    vocabulary_size: int
    lowercase: bool
    strip_accents: bool | None
    word_length: int


def trained_once(directory: Path, texts: "DocumentTexts", settings: TrainedTokenizer) -> WordPieceTokenizer:
    """A tokenizer of some texts, from the disk if it was trained before.

    Args:
        directory: Where it is kept, named by all that it depends on.
        texts: What it learns from.
        settings: How.

    Raises:
        UserError: If it cannot be trained, or the disk is full.
    """

    def build(partial: Path) -> None:
        WordPieceTokenizer.train(texts, **asdict(settings)).save(partial)
        (partial / FACTS).write_text("{}\n")

    build_once(directory, build, "tokenizer")
    tokenizer = WordPieceTokenizer.load(directory)
    if tokenizer.vocabulary_size < settings.vocabulary_size:
        say_once(
            f"The texts have {tokenizer.vocabulary_size:,} word pieces, fewer than data.vocabulary_size allows "
            f"({settings.vocabulary_size:,}): the tokenizer has as many."
        )
    return tokenizer


class DocumentTexts:
    """Texts for the tokenizer, at even distances if there are very many; they can be read again and again.

    Args:
        data: Rows with a text column.
        text_column: Its name.
    """

    def __init__(self, data: Any, text_column: str) -> None:
        self.data, self.text_column = data, text_column

    def __iter__(self) -> Iterator[str]:
        """A text after the other, an empty one for a missing one."""
        step = max(1, len(self.data) // TOKENIZER_DOCUMENTS)
        for start in range(0, len(self.data), 100 * step):
            yield from (text or "" for text in self.data[start : start + 100 * step : step][self.text_column])
