"""Embeddings of n-grams: which rows they have, what they add, and what a text encoder does with them."""

import pytest
import torch

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.backbone.ngram_embeddings import NgramEmbeddings, find_rows, ngram_keys, search_by_steps
from lit_pretrain.errors import UserError

IDS = torch.tensor([[2, 7, 8, 7, 8, 3], [2, 30_000, 8, 7, 3, 0]])
LARGEST = 2**20 - 2


def key_of(*pieces: int) -> int:
    """An n-gram's number, in Python's integers."""
    number = 0
    for piece in pieces:
        number = number * 2**20 + piece + 1
    return number


def known(embeddings: NgramEmbeddings, *ngrams: tuple[int, ...]) -> NgramEmbeddings:
    """Random embeddings for some n-grams."""
    embeddings.set_keys(torch.tensor(sorted(key_of(*one) for one in ngrams)))
    with torch.no_grad():
        embeddings.table[1:].normal_()
    return embeddings


@pytest.mark.parametrize("ids", [IDS, IDS.to(torch.int32)])
def test_numbers_by_hand(ids: torch.Tensor) -> None:
    pairs, triples = ngram_keys(ids, 3)
    for text, texts_pairs, texts_triples in zip(ids.tolist(), pairs.tolist(), triples.tolist(), strict=True):
        assert texts_pairs == [0] + [key_of(*text[at - 1 : at + 1]) for at in range(1, len(text))]
        assert texts_triples == [0, 0] + [key_of(*text[at - 2 : at + 1]) for at in range(2, len(text))]
    assert [one.tolist() for one in ngram_keys(torch.tensor([[5], [0]]), 3)] == [[[0], [0]]] * 2
    # The largest one still fits.
    assert ngram_keys(torch.full((3,), LARGEST), 3)[1][2].item() == key_of(LARGEST, LARGEST, LARGEST) < 2**62


def test_rows_are_those_of_a_search() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 3, 7, 8, 9, 1000):
        keys = torch.randperm(3 * count, generator=generator)[:count].sort().values * 10**15
        wanted = torch.cat([keys, keys + 1, keys - 1, torch.tensor([0, 2**62])])
        places = torch.searchsorted(keys, wanted).clamp(max=count - 1)
        expected = torch.where(keys[places] == wanted, places + 1, 0)
        assert find_rows(keys, wanted[None])[0].tolist() == expected.tolist()
        # By steps, where there is no search (ONNX).
        places = search_by_steps(keys, wanted)
        assert torch.where(keys[places] == wanted, places + 1, 0).tolist() == expected.tolist()


def test_what_is_added_by_hand() -> None:
    embeddings = NgramEmbeddings(3, 50, 4)
    assert not embeddings.known
    embeddings.set_keys(torch.tensor([key_of(7, 8)]))
    assert embeddings.known and embeddings(IDS).abs().max() == 0.0
    known(embeddings, (2, 7), (7, 8), (8, 7), (2, 7, 8))
    start_seven, seven_eight, eight_seven, triple = embeddings.table[1:5]
    expected = torch.zeros(2, 6, 4)
    # Once, though no longer n-gram ends at the second token.
    expected[0, 1] = start_seven
    expected[0, 2] = seven_eight + triple
    expected[0, 4] = seven_eight
    expected[0, 3] = expected[1, 3] = eight_seven
    torch.testing.assert_close(embeddings(IDS), expected)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_of_some_tokens_only_these_are_embedded_as_among_all(positions: str) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(depth=0, width=16, heads=2)
    encoder = TextEncoder(40_000, transformer=config, positions=positions, ngrams=3, ngram_rows=64, max_positions=6)
    embeddings = encoder.embeddings
    embeddings.ngrams.set_keys(torch.tensor([key_of(7, 8), key_of(8, 7), key_of(7, 8, 7)]))
    torch.nn.init.normal_(embeddings.ngrams.table)
    segments, places = torch.randint(0, 2, IDS.shape), torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]])
    kept = torch.tensor([[0, 2, 3, 5], [1, 2, 4, 5]])
    lengths: list[int] = []
    embeddings.norm.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    for known in (None, places):
        found = embeddings(IDS, segments, known, kept)
        everything = embeddings(IDS, segments, known)
        torch.testing.assert_close(found, everything.gather(1, kept[..., None].expand(-1, -1, 16)), rtol=0, atol=0)
    assert lengths == [4, 6, 4, 6]


def test_an_encoder_starts_as_the_one_without_and_learns_what_order_says() -> None:
    config = TransformerConfig(depth=1, width=16, heads=2)
    torch.manual_seed(0)
    without = TextEncoder(40_000, transformer=config, positions="rotary")
    encoder = TextEncoder(40_000, transformer=config, positions="rotary", ngrams=2, ngram_rows=64)
    assert encoder.lacks_ngrams and not without.lacks_ngrams
    keys = torch.tensor([key_of(7, 8), key_of(8, 7), key_of(9, 9)])
    encoder.embeddings.ngrams.set_keys(keys)
    assert not encoder.lacks_ngrams
    encoder.load_state_dict(without.state_dict(), strict=False)
    torch.testing.assert_close(encoder(IDS), without(IDS), rtol=0, atol=0)
    encoder(IDS).square().sum().backward()
    used = encoder.embeddings.ngrams.table.grad.abs().sum(dim=1).nonzero()[:, 0].tolist()
    assert used == [1, 2]  # never row 0, and nobody said (9, 9)
    rebuilt = TextEncoder.from_settings(encoder.settings())
    rebuilt.load_state_dict(encoder.state_dict())
    assert not rebuilt.lacks_ngrams
    torch.testing.assert_close(rebuilt(IDS), without(IDS), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ngrams": 0}, "encoder.ngrams is 0: give 1 for none, or the longest n-gram, up to 3"),
        ({"ngrams": 4}, "encoder.ngrams is 4"),
        ({"ngrams": 2, "ngram_rows": 0}, "encoder.ngram_rows is 0: give at least 1"),
        (
            {"ngrams": 2, "vocabulary_size": 2**20},
            "1048576 pieces is too large for encoder.ngrams, .* set encoder.ngrams to 1",
        ),
    ],
)
def test_impossible_settings_are_told(settings: dict[str, int], sentence: str) -> None:
    small = {"vocabulary_size": 20, "transformer": TransformerConfig(depth=1, width=32, heads=2)}
    with pytest.raises(UserError, match=sentence):
        TextEncoder(**(small | settings))
