"""What is hidden of texts in training: how much, where, and that nothing sees it."""

import pytest
import torch

from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.errors import UserError
from lit_pretrain.modules.fine_tuning import modalities
from lit_pretrain.modules.fine_tuning.modalities import make_modality


@pytest.mark.parametrize("local", [{}, {"attention_window": 2}], ids=["global", "local"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_what_is_hidden_changes_nothing(positions, local):
    torch.manual_seed(0)
    transformer = TransformerConfig(depth=2, width=16, heads=2, **local)
    encoder = TextEncoder(50, transformer=transformer, positions=positions).eval()
    ids = torch.randint(5, 50, (4, 12))
    lengths = torch.tensor([[12], [12], [7], [4]])
    batch = {"input_ids": ids, "attention_mask": (torch.arange(12) < lengths).long(), "padded": True}
    texts = make_modality(encoder, ImageAugmentation(), token_dropout=0.5)
    inputs = texts.varied(encoder, batch, torch.Generator().manual_seed(0))
    # Half of each text is left out, which is the same as hiding it of attention and pooling.
    assert inputs["attention_mask"].sum(dim=1).tolist() == [6, 6, 4, 2]
    seen = torch.zeros_like(ids).scatter_reduce_(1, inputs["positions"], inputs["attention_mask"], "amax")
    assert seen.sum(dim=1).tolist() == [6, 6, 4, 2]
    torch.testing.assert_close(texts.encode(encoder, inputs), encoder(ids, seen))
    other = inputs | {"input_ids": torch.where(seen > 0, ids, 7)}
    assert not torch.equal(other["input_ids"], ids)
    torch.testing.assert_close(texts.encode(encoder, other), texts.encode(encoder, inputs))
    # Texts of one length leave nothing to mask.
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "padded": False}
    inputs = texts.varied(encoder, batch, torch.Generator().manual_seed(0))
    assert inputs["attention_mask"].all() and not inputs["padded"]
    # In evaluation everything is seen, and attention needs no mask for that.
    masks = []
    encoder.transformer.blocks[0].register_forward_pre_hook(lambda _, arguments: masks.append(arguments[1]))
    torch.testing.assert_close(texts.features(encoder, batch), encoder(ids))
    torch.testing.assert_close(texts.features(encoder, batch | {"padded": True}), encoder(ids))
    assert masks[0] is None and masks[2] is not None


def test_long_texts_are_read_in_parts_where_nothing_learns(monkeypatch):
    torch.manual_seed(0)
    encoder = TextEncoder(50, transformer=TransformerConfig(depth=1, width=16, heads=2)).eval()
    ids = torch.randint(5, 50, (5, 12))
    mask = (torch.arange(12) < torch.tensor([[12], [12], [7], [4], [9]])).long()
    batch = {"input_ids": ids, "attention_mask": mask, "padded": True}
    texts = make_modality(encoder, ImageAugmentation(), token_dropout=0.0)
    whole = texts.features(encoder, batch)
    rows = []
    encoder.transformer.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    monkeypatch.setattr(modalities, "TOKENS_AT_ONCE", 30)
    with torch.no_grad():
        torch.testing.assert_close(texts.features(encoder, batch), whole)
    assert rows == [2, 2, 1]
    texts.features(encoder, batch)
    assert rows[3:] == [5]


def test_where_nothing_can_be_hidden_is_told():
    text = TransformerConfig(depth=1, width=16, heads=2)
    with pytest.raises(UserError, match="model.token_dropout is 1.0: give a share from 0 to below 1"):
        make_modality(TextEncoder(20, transformer=text), ImageAugmentation(), 1.0)
    with pytest.raises(UserError, match="which causal encoders ignore"):
        make_modality(TextEncoder(20, transformer=text, causal=True), ImageAugmentation(), 0.1)
    with pytest.raises(UserError, match="hides tokens of texts: leave it out for pictures"):
        make_modality(VisionEncoder(image_size=8, patch_size=4), ImageAugmentation(), 0.1)
