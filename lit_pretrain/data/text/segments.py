"""Contiguous text for objectives that need no pairs: a document cut into pieces that fill a sequence.

The cuts shift from epoch to epoch, so that no token always stands at a sequence's edge (as in RoBERTa's DOC-SENTENCES
without its packing, arXiv:1907.11692).
"""

import numpy

from lit_pretrain.data.randomness import sample_generator
from lit_pretrain.data.text.token_cache import TokenCache


def plan_segments(
    cache: TokenCache, documents: numpy.ndarray, room: int, seed: int, epoch: int | None
) -> numpy.ndarray:
    """Make an epoch's segments.

    Args:
        cache: The tokenised corpus.
        documents: (N,) documents to take from.
        room: Tokens of a segment: the sequence length less [CLS] and [SEP].
        seed: With `epoch`, the source of the shifts.
        epoch: Number of the pass over the corpus; null cuts from each document's start.

    Returns:
        (P, 2) start and end of each segment; every token of every document is in exactly one.
    """
    bounds = cache.document_offsets()
    starts, ends = bounds[documents], bounds[documents + 1]
    shifts = numpy.zeros(len(documents), dtype=numpy.int64)
    if epoch is not None:
        shifts = sample_generator(seed, "segments", epoch).integers(0, room, len(documents))
    # A document's first segment ends after `shift` tokens (or `room`, if none), the others after `room` each.
    firsts = numpy.minimum(starts + numpy.where(shifts > 0, shifts, room), ends)
    counts = 1 + -(-(ends - firsts) // room)
    owner = numpy.repeat(numpy.arange(len(documents)), counts)
    rank = numpy.arange(len(owner)) - numpy.repeat(numpy.cumsum(counts) - counts, counts)
    begin = numpy.where(rank == 0, starts[owner], firsts[owner] + (rank - 1) * room)
    finish = numpy.where(rank == 0, firsts[owner], numpy.minimum(firsts[owner] + rank * room, ends[owner]))
    return numpy.stack([begin, finish], axis=1)
