"""Contiguous segments: every token once, cuts that move."""

import numpy
from test_sentence_pairs import corpus, some_corpus

from lit_pretrain.data.text import document_dataset, token_cache
from lit_pretrain.data.text.document_dataset import plan_segments


def test_by_hand():
    cache = corpus([3, 4], [2], [10])
    # Documents of 7, 2 and 10 tokens in segments of 5.
    plan = plan_segments(cache, numpy.arange(3), 5, 0, None)
    assert plan.tolist() == [[0, 5], [5, 7], [7, 9], [9, 14], [14, 19]]
    assert plan_segments(cache, numpy.array([2]), 5, 0, None).tolist() == [[9, 14], [14, 19]]


def test_every_token_is_in_one_segment_and_cuts_move(monkeypatch):
    cache = some_corpus()
    plans = [plan_segments(cache, numpy.arange(cache.documents), 50, 7, epoch) for epoch in range(6)]
    for plan in plans:
        lengths = plan[:, 1] - plan[:, 0]
        assert lengths.min() > 0 and lengths.max() <= 50
        assert numpy.concatenate([numpy.arange(*span) for span in plan]).tolist() == list(range(len(cache.tokens)))
        # No segment spans two documents.
        assert set(cache.document_offsets()[1:]) <= set(plan[:, 1])
    assert len({plan.tobytes() for plan in plans}) == 6
    monkeypatch.setattr(document_dataset, "DOCUMENTS_AT_ONCE", 3)
    monkeypatch.setattr(token_cache, "DOCUMENTS_AT_ONCE", 3)
    again = plan_segments(cache, numpy.arange(cache.documents), 50, 7, 3)
    assert again.tolist() == plans[3].tolist()
