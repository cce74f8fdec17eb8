"""Tokenizers of whichever kind a directory, a file or a checkpoint holds."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.byte_pair_tokenizer import (
    MODERNBERT_TOKENS,
    ROBERTA_TOKENS,
    BytePairTokenizer,
    ModernBertTokenizer,
    RobertaTokenizer,
)
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer, read_tokenizer


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """Read BERT's, RoBERTa's, ModernBERT's or CLIP's tokenizer from a directory or its file.

    Raises:
        UserError: If there is none, or it is of another kind.
    """
    tokenizer, source = read_tokenizer(path)
    return kind_of(tokenizer)(tokenizer, source)


def tokenizer_from_json(text: str) -> TextTokenizer:
    """Read what a tokenizer's `to_json` wrote."""
    tokenizer = Tokenizer.from_str(text)
    return kind_of(tokenizer)(tokenizer)


def kind_of(
    tokenizer: Tokenizer,
) -> type[WordPieceTokenizer | RobertaTokenizer | ModernBertTokenizer | BytePairTokenizer]:
    """Which of ours a tokenizer of the library is, by its model and its special tokens."""
    if json.loads(tokenizer.to_str())["model"]["type"] != BytePairTokenizer.model:
        return WordPieceTokenizer
    if tokenizer.token_to_id(ROBERTA_TOKENS[0]) is not None:
        return RobertaTokenizer
    return ModernBertTokenizer if tokenizer.token_to_id(MODERNBERT_TOKENS[0]) is not None else BytePairTokenizer
