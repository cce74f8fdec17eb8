"""Embeddings of n-grams: which rows they have, what they add, and what a text encoder does with them."""

import pytest
import torch

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.backbone.ngram_embeddings import NgramEmbeddings, ngram_rows
from lit_pretrain.errors import UserError

IDS = torch.tensor([[2, 7, 8, 7, 8, 3], [2, 30_000, 8, 7, 3, 0]])


def row_by_hand(pieces: list[int], rows: int) -> int:
    """A polynomial hash in Python's integers, which know no overflow."""
    hashed = pieces[0]
    for piece in pieces[1:]:
        hashed = (hashed * 1_103_515_245 + piece) % (2**31 - 1)
    return hashed % rows + (len(pieces) - 2) * rows


@pytest.mark.parametrize("ids", [IDS, IDS.to(torch.int32)])
def test_rows_by_hand(ids: torch.Tensor) -> None:
    found = ngram_rows(ids, 4, 1000)
    assert len(found) == 3
    for order, rows in enumerate(found, start=2):
        for text, texts_rows in zip(ids.tolist(), rows.tolist(), strict=True):
            padded = [0] * (order - 1) + text
            assert texts_rows == [row_by_hand(padded[at : at + order], 1000) for at in range(len(text))]


def test_what_is_added_by_hand() -> None:
    embeddings = NgramEmbeddings(3, 50, 4)
    assert embeddings(IDS).abs().max() == 0.0
    with torch.no_grad():
        embeddings.table.normal_()
    pairs, triples = ngram_rows(IDS, 3, 50)
    torch.testing.assert_close(embeddings(IDS), embeddings.table[pairs] + embeddings.table[triples])
    # The same run of pieces says the same wherever it stands.
    torch.testing.assert_close(ngram_rows(IDS, 2, 50)[0][0, 2], ngram_rows(IDS, 2, 50)[0][0, 4])


def test_an_encoder_starts_as_the_one_without_and_learns_what_order_says() -> None:
    config = TransformerConfig(depth=1, width=16, heads=2)
    torch.manual_seed(0)
    without = TextEncoder(40_000, transformer=config, positions="rotary")
    encoder = TextEncoder(40_000, transformer=config, positions="rotary", ngrams=2, ngram_rows=64)
    encoder.load_state_dict(without.state_dict() | {"embeddings.ngrams.table": torch.zeros(64, 16)})
    torch.testing.assert_close(encoder(IDS), without(IDS), rtol=0, atol=0)
    encoder(IDS).square().sum().backward()
    used = encoder.embeddings.ngrams.table.grad.abs().sum(dim=1).nonzero()[:, 0].tolist()
    assert used == sorted(set(ngram_rows(IDS, 2, 64)[0].flatten().tolist()))
    rebuilt = TextEncoder.from_settings(encoder.settings())
    rebuilt.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(rebuilt(IDS), without(IDS), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ngrams": 0}, "encoder.ngrams is 0: give 1 for none, or the longest n-gram, up to 8"),
        ({"ngrams": 9}, "encoder.ngrams is 9"),
        ({"ngrams": 2, "ngram_rows": 0}, "encoder.ngram_rows is 0: give a number from 1"),
    ],
)
def test_impossible_settings_are_told(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TextEncoder(20, **settings)
