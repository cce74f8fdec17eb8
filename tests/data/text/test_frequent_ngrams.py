"""The n-grams a corpus has most often, counted by hand."""

import tracemalloc
from collections import Counter

import numpy
import pytest
from test_sentence_pairs import corpus

from lit_pretrain.data.text import frequent_ngrams as module
from lit_pretrain.data.text.frequent_ngrams import frequent_ngrams
from lit_pretrain.data.text.token_cache import TokenCache


def number(*pieces: int) -> int:
    """An n-gram as `ngram_keys` has it."""
    return int("".join(f"{piece + 1:020b}" for piece in pieces), 2)


def corpus_of(*documents: list[int]) -> TokenCache:
    """One sentence a document, of these word pieces."""
    cache = corpus(*[[len(one)] for one in documents])
    cache.tokens = numpy.array([piece for one in documents for piece in one], dtype=numpy.uint16)
    return cache


def test_by_hand():
    cache = corpus_of([5, 6, 5, 6, 7], [6, 7, 5, 6], [5])
    # Not (7, 6), which spans two documents.
    assert frequent_ngrams(cache, 2, 10).tolist() == sorted([number(5, 6), number(6, 5), number(6, 7), number(7, 5)])
    assert frequent_ngrams(cache, 2, 2).tolist() == [number(5, 6), number(6, 7)]
    assert frequent_ngrams(cache, 3, 1).tolist() == [number(5, 6)]
    assert frequent_ngrams(corpus_of([5], [6]), 3, 4).tolist() == []


def test_those_of_both_lengths_compete():
    draw = numpy.random.default_rng(0)
    documents = [draw.integers(65_000, 65_006, draw.integers(1, 40)).tolist() for _ in range(50)]
    counts = Counter(
        number(*one[at : at + order]) for one in documents for order in (2, 3) for at in range(len(one) - order + 1)
    )
    kept = set(frequent_ngrams(corpus_of(*documents), 3, 60).tolist())
    assert len(kept) == 60
    assert min(counts[one] for one in kept) >= max(count for one, count in counts.items() if one not in kept)


def test_a_large_corpus_is_sampled():
    documents = [[5, 6]] * 50 + [[7, 8]] * 50
    cache = corpus_of(*documents, [9, 10])
    assert frequent_ngrams(cache, 2, 10, most_tokens=20).tolist() == [number(5, 6), number(7, 8)]


def random_corpus(documents: int) -> TokenCache:
    """Documents of up to 100 of 400 pieces, of which few are frequent."""
    draw = numpy.random.default_rng(1)
    lengths = draw.integers(1, 100, documents)
    return corpus_of(*[draw.geometric(0.05, length).clip(max=400).tolist() for length in lengths])


@pytest.mark.parametrize("longest", [2, 3])
def test_several_readings_find_what_one_does(monkeypatch: pytest.MonkeyPatch, longest: int) -> None:
    cache = random_corpus(100)
    once = frequent_ngrams(cache, longest, 300)
    monkeypatch.setattr(module, "SORTED_AT_ONCE", 700)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 150)
    assert frequent_ngrams(cache, longest, 300).tolist() == once.tolist()


def test_counting_holds_few_ngrams_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = random_corpus(4_000)
    monkeypatch.setattr(module, "SORTED_AT_ONCE", 2**14)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 2**12)
    tracemalloc.start()
    try:
        frequent_ngrams(cache, 2, 1_000)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 3.4 bytes a token; 37 where all are counted at once.
    assert most < 8 * len(cache.tokens), most / len(cache.tokens)
