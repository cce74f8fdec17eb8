"""Which runs of word pieces are frequent in a corpus, for `lit_pretrain.backbone.ngram_embeddings`."""

from collections.abc import Iterator

import numpy
import torch
from torch import Tensor

from lit_pretrain.backbone.ngram_embeddings import ngram_keys
from lit_pretrain.data.text.token_cache import TokenCache, let_go

# What is frequent is known from so many.
MOST_TOKENS = 2**25
# N-grams that are sorted at once, some 40 bytes each: all those of a corpus would be the peak of a training's memory.
SORTED_AT_ONCE = 2**22
# Tokens that are numbered at once.
TOKENS_AT_ONCE = 2**19


def frequent_ngrams(cache: TokenCache, longest: int, count: int, most_tokens: int = MOST_TOKENS) -> Tensor:
    """The n-grams that a corpus has most often, within its documents.

    They are counted in several readings of the corpus, each for the n-grams that begin with some of the pieces.

    Args:
        cache: The tokenised corpus.
        longest: Pieces of the longest n-grams, from 2.
        count: How many n-grams, of all lengths together.
        most_tokens: Of a larger corpus so many tokens are read, of documents at even distances.

    Returns:
        (at most `count`,) their numbers as `ngram_keys` has them, ascending.
    """
    bounds = cache.document_offsets()
    documents = numpy.arange(0, cache.documents, -(-int(bounds[-1]) // most_tokens))
    spans = numpy.stack([bounds[documents], bounds[documents + 1]])
    ends = numpy.cumsum(spans[1] - spans[0])
    blocks = numpy.split(spans, numpy.flatnonzero(numpy.diff(ends // TOKENS_AT_ONCE)) + 1, axis=1)
    readings = -(-(longest - 1) * int(ends[-1]) // SORTED_AT_ONCE)
    kinds, times = numpy.empty(0, numpy.int64), numpy.empty(0, numpy.int64)
    for reading in range(readings):
        keys = numpy.concatenate(
            [part for block in blocks for part in ngrams_of(cache, block, longest, readings, reading)]
        )
        let_go(cache.tokens)
        new_kinds, new_times = numpy.unique(keys, return_counts=True)
        kinds, times = numpy.concatenate([kinds, new_kinds]), numpy.concatenate([times, new_times])
        # Of those that are as frequent the lower numbers, so that the same are kept on every machine.
        best = numpy.lexsort((kinds, -times))[:count]
        kinds, times = kinds[best], times[best]
    return torch.from_numpy(numpy.sort(kinds))


def ngrams_of(
    cache: TokenCache, spans: numpy.ndarray, longest: int, readings: int, reading: int
) -> Iterator[numpy.ndarray]:
    """Numbers of the n-grams of some documents that one reading counts, for n = 2, then 3.

    Args:
        cache: The tokenised corpus.
        spans: (2, K) first tokens of the documents, and their ends.
        longest: Pieces of the longest n-grams.
        readings: How many readings there are.
        reading: Which of them this is, from 0; which n-grams are its own is told by their first piece.
    """
    tokens = numpy.concatenate([cache.tokens[start:end] for start, end in spans.T])
    lengths = spans[1] - spans[0]
    # Tokens from each one to its document's end.
    left = numpy.repeat(numpy.cumsum(lengths), lengths) - numpy.arange(len(tokens))
    first = numpy.flatnonzero((tokens % readings == reading) & (left >= 2))
    windows = tokens[numpy.minimum(first[:, None] + numpy.arange(longest), len(tokens) - 1)]
    for order, keys in enumerate(ngram_keys(torch.from_numpy(windows.astype(numpy.int64)), longest), start=2):
        yield keys.numpy()[left[first] >= order, order - 1]
