"""Tokenizers of whichever kind a directory, a file or a checkpoint holds."""

import json
from pathlib import Path

from lit_pretrain.data.byte_pair_tokenizer import BytePairTokenizer
from lit_pretrain.data.text_tokenizer import TextTokenizer
from lit_pretrain.data.tokenizer import WordPieceTokenizer, read_tokenizer


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """Read BERT's or CLIP's tokenizer from a directory or its file.

    Raises:
        UserError: If there is none, or it is of another kind.
    """
    tokenizer, source = read_tokenizer(path)
    kind = json.loads(tokenizer.to_str())["model"]["type"]
    return (BytePairTokenizer if kind == BytePairTokenizer.model else WordPieceTokenizer)(tokenizer, source)


def tokenizer_from_json(text: str) -> TextTokenizer:
    """Read what a tokenizer's `to_json` wrote."""
    kind = json.loads(text)["model"]["type"]
    return (BytePairTokenizer if kind == BytePairTokenizer.model else WordPieceTokenizer).from_json(text)
