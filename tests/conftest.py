"""Fixtures that several folders share."""

from pathlib import Path

import pytest
from text_corpus import make_data, write_corpus

from lit_pretrain.data import DocumentDataModule


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The corpus as a file of JSON lines."""
    return write_corpus(tmp_path / "corpus.jsonl")


@pytest.fixture
def data(corpus: Path, tmp_path: Path) -> DocumentDataModule:
    """The corpus in sentence pairs of 32 tokens, batches of 8."""
    return make_data(corpus, tmp_path)
