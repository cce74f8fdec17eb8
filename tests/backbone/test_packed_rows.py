"""Rows of several documents: each is encoded as if it were alone, whatever the encoder has."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.backbone.ngram_embeddings import ngram_keys
from lit_pretrain.backbone.packed_rows import (
    DocumentBounds,
    attend_within,
    bounds_of,
    has_variable_lengths,
    places_within,
    serves_variable_lengths,
)

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, -1, -1], [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]])


def test_places_and_bounds_by_hand():
    assert places_within(DOCUMENTS).tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]]
    bounds = bounds_of(DOCUMENTS)
    assert bounds.starts.tolist() == [0, 3, 7, 8, 10, 18, 20] and bounds.longest == 10


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"positions": "learned"},
        {"positions": "rotary", "ngrams": 3, "ngram_rows": 40},
        {"positions": "rotary", "window": 2, "local_rotary_base": 100.0},
    ],
    ids=["learned", "ngrams", "windows"],
)
def test_a_document_among_others_is_as_alone(settings, causal):
    torch.manual_seed(0)
    settings = dict(settings)
    window = settings.pop("window", None)
    config = TransformerConfig(depth=3, width=16, heads=2, attention_window=window)
    encoder = TextEncoder(20, transformer=config, max_positions=10, **settings).eval()
    ids = torch.randint(0, 20, DOCUMENTS.shape)
    if encoder.embeddings.ngrams is not None:
        # Those of the rows as they are, so that some reach from one document into the next.
        keys = torch.cat([keys.flatten() for keys in ngram_keys(ids, 3)]).unique()
        encoder.embeddings.ngrams.set_keys(keys[keys > 0][:40])
        torch.nn.init.normal_(encoder.embeddings.ngrams.table)
    for parameter in encoder.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    packed = encoder.forward_features(ids, DOCUMENTS >= 0, causal=causal, documents=DOCUMENTS)
    assert packed.isfinite().all()
    for row in range(len(ids)):
        for number in range(int(DOCUMENTS[row].max()) + 1):
            own = DOCUMENTS[row] == number
            alone = encoder.forward_features(ids[row, own][None], causal=causal)
            torch.testing.assert_close(packed[row, own][None], alone, rtol=1e-5, atol=1e-5)
    # Not what one document of the whole row would be.
    assert not torch.allclose(packed, encoder.forward_features(ids, DOCUMENTS >= 0, causal=causal), atol=1e-2)


@pytest.mark.skipif(not has_variable_lengths(), reason="this torch has no attention over documents of any length")
def test_cuda_attends_within_documents_at_once():
    with FakeTensorMode():
        query, key, value = (torch.empty(2, 4, 10, 64, dtype=torch.bfloat16, device="cuda") for _ in range(3))
        bounds = DocumentBounds(torch.empty(7, dtype=torch.int32, device="cuda"), 10)
        assert serves_variable_lengths(query.device, query.dtype, 0.0)
        mixed = attend_within(query, key, value, bounds, False, 2)
    assert mixed.shape == query.shape and mixed.dtype == query.dtype and mixed.device == query.device
