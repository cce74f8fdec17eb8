"""Ranks and recalls of small cases done by hand."""

import math

import pytest
import torch

from lit_pretrain.measures import retrieval
from lit_pretrain.measures.embedding_health import effective_rank, modality_gap
from lit_pretrain.measures.retrieval import retrieval_both_ways, retrieval_ranks

# Three pictures along the axes; captions by their cosines with each.
PICTURES = torch.eye(3)
TEXTS = torch.tensor(
    [
        [0.9, 0.1, 0.0],  # of 0: rank 1
        [0.3, 0.8, 0.1],  # of 0: rank 2
        [0.5, 0.4, 0.6],  # of 1: rank 3
        [0.0, 0.2, 0.7],  # of 2: rank 1
        [0.6, 0.5, 0.5],  # of 2: rank 3, a tie counting as wrong
    ]
)
OWNERS = torch.tensor([0, 0, 1, 2, 2])


@pytest.mark.parametrize("at_once", [1, 2**24])
def test_by_hand(monkeypatch, at_once):
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", at_once)
    pairs = torch.stack([torch.arange(5), OWNERS], dim=1)
    assert retrieval_ranks(TEXTS, PICTURES, pairs[[3, 0, 4, 2, 1]]).tolist() == [1, 2, 3, 1, 3]
    # Picture 0: 0.9 first. Picture 1: 0.8 and 0.5 before its 0.4. Picture 2: 0.7 first.
    figures = retrieval_both_ways(TEXTS, PICTURES, OWNERS, torch.arange(5))
    assert figures == {
        "text_to_picture/recall_at_1": pytest.approx(2 / 5),
        "text_to_picture/recall_at_5": 1.0,
        "text_to_picture/recall_at_10": 1.0,
        "text_to_picture/median_rank": 2.0,
        "picture_to_text/recall_at_1": pytest.approx(2 / 3),
        "picture_to_text/recall_at_5": 1.0,
        "picture_to_text/recall_at_10": 1.0,
        "picture_to_text/median_rank": 1.0,
        "mean_recall": pytest.approx((2 / 5 + 1 + 1 + 2 / 3 + 1 + 1) / 6),
    }


def test_a_caption_of_several_pictures_is_right_for_each():
    texts = TEXTS[[0, 2, 2, 3]]
    figures = retrieval_both_ways(texts, PICTURES, torch.tensor([0, 1, 2, 2]), torch.tensor([7, 5, 5, 9]))
    # Both times the third text is asked, picture 2 is the nearest, and right.
    assert figures["text_to_picture/recall_at_1"] == 1.0
    # Picture 1 finds it first (0.4), one answer however often it was given.
    assert figures["picture_to_text/recall_at_1"] == 1.0


def test_who_says_the_same_of_everything_finds_nothing():
    same = torch.ones(20, 4) / 2
    figures = retrieval_both_ways(same, same, torch.arange(20), torch.arange(20))
    assert figures["text_to_picture/recall_at_10"] == 0.0
    assert figures["picture_to_text/median_rank"] == 20.0


def test_gap_and_rank():
    assert float(modality_gap(torch.eye(2), torch.tensor([[-1.0, 0.0], [0.0, -1.0]]))) == pytest.approx(math.sqrt(2))
    assert float(effective_rank(torch.eye(5)[:, :4])) == pytest.approx(4.0)
    assert float(effective_rank(torch.ones(6, 4))) == pytest.approx(1.0, abs=1e-4)
    # Singular values 3 and 1: shares of 3/4 and 1/4.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert float(effective_rank(torch.diag(torch.tensor([3.0, 1.0])))) == pytest.approx(expected)


def test_not_a_number_finds_nothing():
    embeddings = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    keys = torch.arange(20)
    assert retrieval_both_ways(embeddings, embeddings, keys, keys)["mean_recall"] == 1.0
    spoilt = torch.full_like(embeddings, float("nan"))
    for texts, pictures in ((spoilt, embeddings), (embeddings, spoilt), (spoilt, spoilt)):
        figures = retrieval_both_ways(texts, pictures, keys, keys)
        assert figures["mean_recall"] == 0.0 and figures["text_to_picture/median_rank"] == 20
