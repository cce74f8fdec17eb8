"""Features are what the blocks give, whatever the padding, and the encoder is left as it was."""

import pytest
import torch
from small_pictures import make_encoder

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.features import features_of_batches, probe_depths


@pytest.fixture
def images():
    return torch.randint(0, 256, (10, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def text_encoder(**settings):
    torch.manual_seed(0)
    transformer = TransformerConfig(**{"depth": 3, "width": 32, "heads": 2} | settings.pop("transformer", {}))
    return TextEncoder(vocabulary_size=50, transformer=transformer, max_positions=16, **settings)


def texts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 50, (length,), generator=generator) for length in lengths]


def padded(rows, width):
    """The rows as a batch whose padding is not even the same token."""
    batch = {"input_ids": torch.randint(5, 50, (len(rows), width)), "attention_mask": torch.zeros(len(rows), width)}
    for place, row in enumerate(rows):
        batch["input_ids"][place, : len(row)] = row
        batch["attention_mask"][place, : len(row)] = 1
    return batch


def test_pictures_are_the_mean_over_patches_after_each_block(images):
    torch.manual_seed(0)
    encoder = make_encoder(class_token=True, pooling="cls").train()
    with torch.no_grad():
        tokens = encoder.embeddings((images.float() / 255 - 0.5) / 0.5)
        first = encoder.transformer.blocks[0](tokens)
        last = encoder.transformer.final_norm(encoder.transformer.blocks[1](first))
    batches = [{"images": images[:7]}, {"images": images[7:]}]
    found = features_of_batches(encoder, batches, [2, 1])
    torch.testing.assert_close(found[1], first[:, 1:].mean(dim=1))
    torch.testing.assert_close(found[2], last[:, 1:].mean(dim=1))
    torch.testing.assert_close(features_of_batches(encoder, batches, [1], "cls")[1], first[:, 0])
    torch.testing.assert_close(features_of_batches(encoder, batches, [2], "encoder")[2], last[:, 0])
    assert encoder.training


@pytest.mark.parametrize("settings", [{}, {"positions": "rotary"}, {"transformer": {"norm_order": "pre"}}])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(settings, pooling):
    encoder, rows = text_encoder(**settings), texts([3, 12, 7])
    found = features_of_batches(encoder, [padded(rows, 16)], [1, 2, 3], pooling)
    for place, row in enumerate(rows):
        tokens = encoder.eval().forward_features(row[None]).detach()
        alone = features_of_batches(encoder, [{"input_ids": row[None]}], [1, 2, 3], pooling)
        wanted = tokens.mean(dim=1) if pooling == "mean" else tokens[:, 0]
        torch.testing.assert_close(found[3][place], wanted[0], atol=1e-5, rtol=1e-4)
        for depth in (1, 2):
            torch.testing.assert_close(found[depth][place], alone[depth][0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[1], found[3], atol=1e-3)


def test_the_encoders_own_pooling_and_causal_reading():
    encoder, rows = text_encoder(pooling="pooler"), texts([5, 9])
    batch = padded(rows, 12)
    own = encoder.eval()(batch["input_ids"], batch["attention_mask"]).detach()
    torch.testing.assert_close(features_of_batches(encoder, [batch], [3], "encoder")[3], own)
    # Read causally, the first token knows nothing of what follows it.
    changed = batch | {"input_ids": torch.cat([batch["input_ids"][:, :1], texts([11])[0].expand(2, -1)], dim=1)}
    one, other = (features_of_batches(encoder, [each], [2], "cls", causal=True)[2] for each in (batch, changed))
    torch.testing.assert_close(one, other)
    assert not torch.allclose(one, features_of_batches(encoder, [batch], [2], "cls")[2], atol=1e-3)


def test_what_an_encoder_lacks_is_said(images):
    encoder = make_encoder()
    with pytest.raises(UserError, match="no block 3 in an encoder of 2: give depths from 1 to 2"):
        features_of_batches(encoder, [{"images": images}], [1, 3])
    with pytest.raises(UserError, match="no class token"):
        features_of_batches(encoder, [{"images": images}], [1], "cls")
    with pytest.raises(UserError, match="last block, 2, only"):
        features_of_batches(encoder, [{"images": images}], [1], "encoder")


def test_an_encoder_without_blocks_has_one_layer_its_embeddings():
    encoder = text_encoder(transformer={"depth": 0}, positions="rotary", segments=0)
    rows = texts([3, 12, 7])
    (layer,) = probe_depths(encoder.config.depth)
    found = features_of_batches(encoder, [padded(rows, 16)], [layer])[layer]
    for place, row in enumerate(rows):
        norm, token = encoder.embeddings.norm, encoder.embeddings.token
        torch.testing.assert_close(found[place], norm(token.weight[row]).mean(dim=0).detach())
    # A bag knows no order.
    turned = features_of_batches(encoder, [padded([row.flip(0) for row in rows], 16)], [layer])[layer]
    torch.testing.assert_close(turned, found)
    with pytest.raises(UserError, match="no block 2 in an encoder of none: its embeddings are read as block 1"):
        features_of_batches(encoder, [padded(rows, 16)], [2])
