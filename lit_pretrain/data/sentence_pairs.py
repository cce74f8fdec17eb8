"""Pairs of texts for next sentence prediction, after the script of BERT's authors (arXiv:1810.04805, appendix A.2).

A plan says for every pair of an epoch which tokens are A, which are B and whether B is random (label 1, as in the
authors' code). It is made from sentence lengths alone; every draw of a document comes from (seed, epoch, document).
"""

import random
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy

from lit_pretrain.data.randomness import derive_seed
from lit_pretrain.data.token_cache import TokenCache
from lit_pretrain.errors import UserError

RandomNext = Literal["balanced", "faithful"]


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made.

    Attributes:
        room: Tokens of A and B together: the sequence length less [CLS], [SEP] and [SEP].
        random_next: `balanced` or `faithful`; see `plan_pairs`.
        short_share: Probability that a pair aims at a shorter length, uniform in 2..room.
    """

    room: int
    random_next: RandomNext = "balanced"
    short_share: float = 0.1


@dataclass
class PairPlan:
    """Pairs of an epoch: token offsets of A and B, and the labels.

    Attributes:
        first: (P, 2) start and end of A.
        second: (P, 2) start and end of B.
        is_random: (P,) booleans, label 1.
        documents: (P, 2) documents of A and B.
    """

    first: numpy.ndarray
    second: numpy.ndarray
    is_random: numpy.ndarray
    documents: numpy.ndarray

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.is_random)


def plan_pairs(
    cache: TokenCache, documents: numpy.ndarray, settings: PairSettings, seed: int, epoch: int, training: bool = True
) -> PairPlan:
    """Make an epoch's pairs.

    Sentences of a document are gathered until the target length or its end; A ends at a uniform cut; B is the rest, or
    starts at a random sentence of another document, and then the rest is put back. A piece of one sentence can only
    have a random B. `faithful` otherwise tosses a coin, as the authors do, which yields 55 to 65 % random pairs, and
    draws the target once a document. `balanced` tosses it only while there are as many random as following pairs, and
    else takes the rarer kind, so that the halves are equal if there are pieces of two sentences enough; the target is
    drawn for every pair.

    Args:
        cache: The tokenised corpus.
        documents: (N,) documents to take from, at least two.
        settings: How pairs are made.
        seed: With `epoch`, the source of every draw.
        epoch: Number of the pass over the corpus.
        training: Whether pairs without a single following one are refused.

    Raises:
        UserError: If there are fewer than two documents, or no document for training has two sentences.
    """
    if len(documents) < 2:
        raise UserError(
            f"Sentence pairs need a random second text from another document, but there is {len(documents)} document "
            "to take from: give several documents, or set data.layout to segments and leave out "
            "NextSentencePrediction."
        )
    # Flat arrays of 8 bytes a number: as tuples, the pairs of a corpus of gigabytes would take gigabytes.
    first, second, owners, labels = array("q"), array("q"), array("q"), bytearray()
    surplus = 0  # random pairs so far less following ones
    for index, document in enumerate(documents.tolist()):
        sentences = cache.sentence_offsets(document).tolist()
        draw = random.Random(derive_seed(seed, "pairs", epoch, document))
        target = draw_target(draw, settings)
        last, start = len(sentences) - 1, 0
        while start < last:
            if settings.random_next == "balanced":
                target = draw_target(draw, settings)
            # The first sentence end at or beyond the target length, or the document's end.
            end = min(bisect_left(sentences, sentences[start] + target, start + 1), last)
            cut = start + 1 if end - start < 2 else draw.randint(start + 1, end - 1)
            toss = draw.random() < 0.5
            if settings.random_next == "balanced" and surplus:
                toss = surplus < 0
            is_random = end - start < 2 or toss
            a, owner = (sentences[start], sentences[cut]), index
            if is_random:
                # Uniform over the others: from one fewer, with this one skipped.
                owner = draw.randrange(len(documents) - 1)
                owner += owner >= index
                b = random_text(draw, cache.sentence_offsets(int(documents[owner])), target - (a[1] - a[0]))
                start = cut
            else:
                b = (sentences[cut], sentences[end])
                start = end
            surplus += 1 if is_random else -1
            a, b = truncate_pair(draw, a, b, settings.room)
            first.extend(a)
            second.extend(b)
            labels.append(is_random)
            owners.extend((document, int(documents[owner])))
    if training and all(labels):
        raise UserError(
            "Every document has one sentence only, so no second text follows a first: set data.layout to segments and "
            "leave out NextSentencePrediction."
        )
    return PairPlan(
        numpy.frombuffer(first, numpy.int64).reshape(-1, 2),
        numpy.frombuffer(second, numpy.int64).reshape(-1, 2),
        numpy.frombuffer(labels, bool),
        numpy.frombuffer(owners, numpy.int64).reshape(-1, 2),
    )


def draw_target(draw: random.Random, settings: PairSettings) -> int:
    """The length that a pair aims at."""
    return draw.randint(2, settings.room) if draw.random() < settings.short_share else settings.room


def random_text(draw: random.Random, sentences: numpy.ndarray, target: int) -> tuple[int, int]:
    """Offsets of sentences from a random one on until the target length or the document's end."""
    last = len(sentences) - 1
    start = draw.randrange(last)
    end = min(bisect_left(sentences, sentences[start] + target, start + 1), last)
    return int(sentences[start]), int(sentences[end])


def truncate_pair(
    draw: random.Random, first: tuple[int, int], second: tuple[int, int], room: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Cut the longer side (B on a tie), at the front or the back with equal chance, a token at a time."""
    (a_start, a_end), (b_start, b_end) = first, second
    while (a_end - a_start) + (b_end - b_start) > room:
        front = draw.random() < 0.5
        if a_end - a_start > b_end - b_start:
            a_start, a_end = (a_start + 1, a_end) if front else (a_start, a_end - 1)
        else:
            b_start, b_end = (b_start + 1, b_end) if front else (b_start, b_end - 1)
    return (a_start, a_end), (b_start, b_end)
