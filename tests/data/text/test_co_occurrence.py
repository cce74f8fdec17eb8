"""Embeddings of word pieces from their neighbours, counted by hand and against scikit-learn's factoring."""

import math

import numpy
import pytest
import torch
from test_frequent_ngrams import corpus_of

from lit_pretrain.data.text import co_occurrence
from lit_pretrain.data.text.co_occurrence import count_neighbours, piece_vectors, piece_vectors_once


def test_counts_by_hand(monkeypatch):
    cache = corpus_of([1, 2, 3, 1], [3, 2], [2, 4])
    # Not 1 beside 3 of the next document, and nothing of the last, which is not named.
    expected = numpy.zeros((5, 5))
    expected[1, 2] = 1 + 0.5
    expected[2, 3] = 1 + 1
    expected[1, 3] = 1 + 0.5
    expected += expected.T
    assert numpy.array_equal(count_neighbours(cache, numpy.array([0, 1]), 5).toarray(), expected)
    monkeypatch.setattr(co_occurrence, "CHUNK_TOKENS", 1)
    assert numpy.array_equal(count_neighbours(cache, numpy.array([0, 1]), 5).toarray(), expected)
    # A part of a large corpus: every other document.
    monkeypatch.setattr(co_occurrence, "MOST_TOKENS", 4)
    assert count_neighbours(cache, numpy.array([1, 0, 2]), 5).sum() == 2 * (1 + 1)


def test_information_by_hand():
    counts = count_neighbours(corpus_of([1, 2, 3, 1], [3, 2]), numpy.array([0, 1]), 5)
    information = co_occurrence.pointwise_information(counts).toarray()
    # Pieces 1, 2, 3 have 3, 3.5 and 3.5 neighbours; 1 has 2 at 1.5 of its 3.
    smoothed = 3**0.75 + 2 * 3.5**0.75
    assert information[1, 2] == pytest.approx(math.log(1.5 * smoothed / (3 * 3.5**0.75)), rel=1e-5)
    assert information[2, 3] == pytest.approx(math.log(2 * smoothed / (3.5 * 3.5**0.75)), rel=1e-5)
    assert (information >= 0).all()
    assert information[0].sum() == information[4].sum() == 0


def test_pieces_with_equal_neighbours_are_near():
    """Pieces 1 and 2 stand between 3 and 4 alike; 5 and 6 are found elsewhere."""
    draw = numpy.random.default_rng(0)
    texts = [[3, int(draw.integers(1, 3)), 4] * 4 for _ in range(20)] + [[5, 6, 7] * 4 for _ in range(20)]
    vectors = piece_vectors(corpus_of(*texts), numpy.arange(40), 12, 4)
    assert vectors.dtype == numpy.float32
    unit = vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert cosines[1, 2] > 0.99
    assert abs(cosines[1, 5]) < 0.2
    # Scores of features of unit variance vary by about 1; of pieces that never occur, by little.
    assert numpy.mean(vectors[1:8] ** 2) == pytest.approx(1 / 4, rel=1e-4)
    assert numpy.abs(vectors[[0, 8, 9, 10, 11]]).max() < 0.1


def test_small_matrices_and_nothing_to_count(tmp_path):
    """Wider than the vocabulary; documents of one piece; the same from the disk."""
    cache = corpus_of([1, 2], [3])
    vectors = piece_vectors(cache, numpy.array([0, 1]), 4, 8)
    assert vectors.shape == (4, 8)
    assert numpy.isfinite(vectors).all()
    assert numpy.abs(piece_vectors(cache, numpy.array([1]), 4, 8)).max() < 0.1
    cache.directory = tmp_path / "corpus"
    kept = [piece_vectors_once(tmp_path / "kept", cache, numpy.array([0, 1]), 4, 8) for _ in range(2)]
    assert torch.equal(kept[0], kept[1])
    assert numpy.array_equal(kept[0].numpy(), vectors)
    assert len(list((tmp_path / "kept").glob("*/vectors.npy"))) == 1
    piece_vectors_once(tmp_path / "kept", cache, numpy.array([0]), 4, 8)
    assert len(list((tmp_path / "kept").glob("*/vectors.npy"))) == 2
