"""Which runs of word pieces are frequent in a corpus, for `lit_pretrain.backbone.ngram_embeddings`."""

import numpy
import torch
from torch import Tensor

from lit_pretrain.backbone.ngram_embeddings import ngram_keys
from lit_pretrain.data.text.token_cache import TokenCache

# Counting them takes about 50 bytes a token; what is frequent is known from far fewer.
MOST_TOKENS = 2**25


def frequent_ngrams(cache: TokenCache, longest: int, count: int, most_tokens: int = MOST_TOKENS) -> Tensor:
    """The n-grams that a corpus has most often, within its documents.

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
    read = [cache.tokens[bounds[document] : bounds[document + 1]] for document in documents]
    tokens = torch.from_numpy(numpy.concatenate(read).astype(numpy.int64))
    lengths = bounds[documents + 1] - bounds[documents]
    starts = numpy.cumsum(lengths) - lengths
    since_start = numpy.arange(len(tokens)) - numpy.repeat(starts, lengths)
    kinds, times = [], []
    for order, keys in enumerate(ngram_keys(tokens, longest), start=2):
        counted = numpy.unique(keys.numpy()[since_start >= order - 1], return_counts=True)
        kinds.append(counted[0])
        times.append(counted[1])
    every = numpy.concatenate(kinds)
    # Stable, so that the same are kept on every machine.
    best = numpy.argsort(-numpy.concatenate(times), kind="stable")[:count]
    return torch.from_numpy(numpy.sort(every[best]))
