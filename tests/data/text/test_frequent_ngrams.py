"""The n-grams a corpus has most often, counted by hand."""

from collections import Counter

import numpy
from test_sentence_pairs import corpus

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
