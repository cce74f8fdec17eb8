"""Embeddings of word pieces from who stands beside whom in a corpus, before any training.

The matrix of positive pointwise mutual information of pieces that stand within a few places of each other is factored
by a truncated singular value decomposition, which is what word2vec approaches by gradients (Levy and Goldberg 2014,
"Neural Word Embedding as Implicit Matrix Factorization"). How often a neighbour occurs is raised to the power of 0.75,
and singular values to that of 0.5, as Levy, Goldberg and Dagan 2015 (TACL 3, "Improving Distributional Similarity with
Lessons Learned from Word Embeddings") found best. Counting and factoring take seconds, and a pretraining that starts
there need not learn by gradients which pieces are alike (docs/results/recipes.md).
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from scipy.sparse import coo_matrix, csr_matrix
from torch import Tensor

from lit_pretrain.data.disk_cache import FACTS, build_once
from lit_pretrain.data.notices import say_once
from lit_pretrain.data.text.token_cache import TokenCache
from lit_pretrain.required import required

FORMAT = 1
# To either side, how far apart pieces may stand to count as neighbours.
WINDOW = 2
# Of a larger corpus so many word pieces are counted, of documents at even distances.
MOST_TOKENS = 2**25
# Counted at a time.
CHUNK_TOKENS = 2**21
# Powers of a neighbour's frequency and of the singular values.
CONTEXT_POWER, VALUE_POWER = 0.75, 0.5
# Standard deviation of what counts say nothing of, as in BERT.
UNSEEN = 0.02


def piece_vectors(cache: TokenCache, documents: numpy.ndarray, vocabulary_size: int, width: int) -> numpy.ndarray:
    """One vector a word piece, near those of pieces with the same neighbours.

    Args:
        cache: The tokenised corpus.
        documents: Numbers of the documents that are counted; those of a validation should not be.
        vocabulary_size: V, word pieces.
        width: D, features of a vector.

    Returns:
        (V, D) float32. Of those that occur the root mean square of an element is 1 / sqrt(D), so that their products
        with features of unit variance, which are the scores of a tied head, vary by about 1. Other pieces, and features
        beyond the matrix's rank, have small random values. Equal on every call.
    """
    from sklearn.utils.extmath import randomized_svd

    information = pointwise_information(count_neighbours(cache, documents, vocabulary_size))
    vectors = numpy.random.default_rng(0).normal(scale=UNSEEN, size=(vocabulary_size, width)).astype(numpy.float32)
    rank = min(width, vocabulary_size - 1)
    if information.nnz:
        left, values, _ = randomized_svd(information, n_components=rank, n_iter=4, random_state=0)
        found = left * values**VALUE_POWER
        seen = numpy.flatnonzero(numpy.diff(information.indptr))
        size = numpy.sqrt(numpy.mean(found[seen] ** 2))
        vectors[seen, :rank] = found[seen] / (size * numpy.sqrt(width))
    return vectors


def piece_vectors_once(
    directory: Path, cache: TokenCache, documents: numpy.ndarray, vocabulary_size: int, width: int
) -> Tensor:
    """As `piece_vectors`, from the disk if the same were made before.

    Args:
        directory: Where those of all corpora are kept.
        cache: The tokenised corpus, whose directory is named by its content.
        documents: Numbers of the documents that are counted.
        vocabulary_size: Word pieces.
        width: Features of a vector.

    Raises:
        UserError: If the disk is full, or cannot be written.
    """
    content = [f"{FORMAT} {WINDOW} {MOST_TOKENS} {vocabulary_size} {width}", required(cache.directory).name]
    key = hashlib.sha256("\n".join(content).encode() + numpy.asarray(documents, numpy.int64).tobytes())
    place = directory / key.hexdigest()[:16]

    def build(partial: Path) -> None:
        # A minute or two of a large corpus.
        say_once(f"Counting which of the {vocabulary_size:,} word pieces stand beside each other.")
        partial.mkdir(parents=True)
        numpy.save(partial / "vectors.npy", piece_vectors(cache, documents, vocabulary_size, width))
        (partial / FACTS).write_text("{}\n")

    build_once(place, build, "initial embeddings")
    return torch.from_numpy(numpy.load(place / "vectors.npy"))


def count_neighbours(cache: TokenCache, documents: numpy.ndarray, vocabulary_size: int) -> csr_matrix:
    """(V, V) how often two pieces stand at most `WINDOW` places apart in a document, on whichever side.

    Nearer neighbours count more: once at a distance of 1, half at 2.
    """
    total = csr_matrix((vocabulary_size, vocabulary_size), dtype=numpy.float32)
    for tokens, numbers in token_chunks(cache, documents):
        for distance in range(1, WINDOW + 1):
            together = numbers[distance:] == numbers[:-distance]
            first, second = tokens[:-distance][together], tokens[distance:][together]
            weights = numpy.full(len(first), 1.0 / distance, dtype=numpy.float32)
            total = total + coo_matrix((weights, (first, second)), shape=total.shape).tocsr()
    return csr_matrix(total + total.T)


def token_chunks(cache: TokenCache, documents: numpy.ndarray) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    """Word pieces of whole documents and the document of each, some millions at a time."""
    bounds = cache.document_offsets()
    lengths = bounds[documents + 1] - bounds[documents]
    documents = documents[:: max(1, -(-int(lengths.sum()) // MOST_TOKENS))]
    tokens: list[numpy.ndarray] = []
    held = 0
    for index, document in enumerate(documents):
        tokens.append(cache.tokens[bounds[document] : bounds[document + 1]])
        held += len(tokens[-1])
        if held >= CHUNK_TOKENS or index == len(documents) - 1:
            numbers = numpy.repeat(numpy.arange(len(tokens)), [len(part) for part in tokens])
            yield numpy.concatenate(tokens).astype(numpy.int64), numbers
            tokens, held = [], 0


def pointwise_information(counts: csr_matrix) -> csr_matrix:
    """(V, V) positive pointwise mutual information of counted pairs: the logarithm of how much more often than chance.

    Args:
        counts: (V, V), how often each piece has each neighbour.
    """
    pairs = counts.tocoo()
    pieces = numpy.asarray(counts.sum(axis=1)).ravel()
    neighbours = pieces**CONTEXT_POWER
    expected = pieces[pairs.row] * neighbours[pairs.col] / max(neighbours.sum(), 1e-12)
    information = numpy.log(pairs.data / expected)
    positive = information > 0
    values = information[positive].astype(numpy.float32)
    return csr_matrix((values, (pairs.row[positive], pairs.col[positive])), shape=counts.shape)
