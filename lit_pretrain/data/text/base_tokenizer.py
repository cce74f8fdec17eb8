"""What every tokenizer here answers, whatever its kind; the work is done by Hugging Face's `tokenizers`."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from tokenizers import Tokenizer

from lit_pretrain.errors import UserError
from lit_pretrain.required import required

# Characters of the longest word that BERT's tokenizer takes apart; longer ones are one unknown piece.
WORD_LENGTH = 100


def ids_of(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[int]:
    """Ids of tokens that a tokenizer has."""
    return [required(tokenizer.token_to_id(token)) for token in tokens]


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """All pieces of a tokenizer without a gap, by id."""
    return [required(tokenizer.id_to_token(index)) for index in range(tokenizer.get_vocab_size())]


class TextTokenizer:
    """Pieces of texts by number, with a token to begin a sequence, one to end it and one to fill it up.

    Args:
        tokenizer: Of the `tokenizers` library; it neither pads nor cuts from then on.
        begin: Token at the beginning of a sequence.
        end: Token at the end of a text.
        source: Where it comes from, for messages.

    Raises:
        UserError: If its ids have a gap.
    """

    model: ClassVar[str]
    # Tokens that end a text where another follows it.
    separators: ClassVar[int] = 1
    cls_id: int
    sep_id: int
    pad_id: int
    # Piece for what has none; null where every text has pieces, as those of bytes do.
    unk_id: int | None = None

    def __init__(self, tokenizer: Tokenizer, begin: str, end: str, source: str = "the tokenizer") -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.vocabulary_size = tokenizer.get_vocab_size()
        ids = set(tokenizer.get_vocab(with_added_tokens=True).values())
        gap = next((token_id for token_id in range(self.vocabulary_size) if token_id not in ids), None)
        if gap is not None:
            raise UserError(
                f"{source} has {self.vocabulary_size} pieces and none with the id {gap}, the largest being {max(ids)}: "
                "number its pieces from 0 without a gap, and name each once."
            )
        self.cls_id, self.sep_id = ids_of(tokenizer, (begin, end))
        self.special_ids = sorted({self.cls_id, self.sep_id})

    # -- what it is

    @cached_property
    def vocabulary(self) -> list[str]:
        """The pieces by id."""
        return pieces_of(self.tokenizer)

    @cached_property
    def word_length(self) -> int | None:
        """Characters of the longest word that is taken apart; null where there is no limit."""
        return json.loads(self.tokenizer.to_str())["model"].get("max_input_chars_per_word")

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal characters that name the pieces and how text is cut into words, and nothing else."""
        parts = json.loads(self.tokenizer.to_str())
        content = [self.vocabulary, parts["normalizer"], parts["pre_tokenizer"]]
        if "merges" in parts["model"]:
            content.append(parts["model"]["merges"])
        if parts["model"].get("max_input_chars_per_word", WORD_LENGTH) != WORD_LENGTH:
            content.append(parts["model"]["max_input_chars_per_word"])
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    # -- using it

    def encode(self, text: str) -> list[int]:
        """Pieces of a text, without special tokens around them."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Pieces of many texts, on all cores."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int], keep_special: bool = False) -> str:
        """Text of pieces, special tokens left out unless asked for."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=not keep_special)

    def id_to_token(self, token_id: int) -> str:
        """A piece by its id; a table of embeddings may have rows that are nobody's."""
        return self.vocabulary[token_id] if token_id < self.vocabulary_size else f"[{token_id}]"

    # -- keeping it

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        kind: Any = cls  # those below know their tokens, and take the tokenizer alone
        return kind(Tokenizer.from_str(text))

    def to_json(self) -> str:
        """The whole tokenizer as one string, which travels in checkpoints."""
        return self.tokenizer.to_str()

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        around = Tokenizer.from_str(self.to_json())
        around.post_processor = self.post_processor()
        config = json.dumps(self.transformers_config(), indent=2)
        (directory / "tokenizer.json").write_text(around.to_str(), encoding="utf-8")
        (directory / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")

    def post_processor(self) -> Any:
        """What puts special tokens around texts, of the `tokenizers` library; for subclasses."""
        raise NotImplementedError

    def transformers_config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json; for subclasses."""
        raise NotImplementedError


def kind_of(tokenizer: Tokenizer) -> str:
    """How a tokenizer of the `tokenizers` library makes pieces: `WordPiece`, `BPE`."""
    return json.loads(tokenizer.to_str())["model"]["type"]
