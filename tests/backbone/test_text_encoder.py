"""The text encoder: pooling, positions, segments, timm's protocol, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from fake_device import NoWaiting, to_fake_cuda
from timm.models import group_parameters
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_pretrain.backbone import BERT_SIZES, TextEncoder, TransformerConfig
from lit_pretrain.backbone.embeddings import TextEmbeddings
from lit_pretrain.backbone.rotary import rotation_for
from lit_pretrain.errors import UserError

SMALL = TransformerConfig(depth=2, width=16, heads=2)
IDS = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
REAL = torch.tensor([[True] * 4, [True] * 3 + [False]])


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same weights every time."""
    torch.manual_seed(0)


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler", "map", "end_of_text"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_every_encoder_answers_timms_questions(pooling: str, positions: str) -> None:
    encoder = TextEncoder(20, transformer=SMALL, pooling=pooling, positions=positions)
    tokens = encoder.forward_features(IDS, REAL)
    assert tokens.shape == (2, 4, 16)
    pooled = encoder.forward_head(tokens, REAL)
    assert pooled.shape == (2, 16)
    torch.testing.assert_close(encoder(IDS, REAL), pooled)
    padding_changed = tokens.clone()
    padding_changed[1, 3] += 5.0
    torch.testing.assert_close(encoder.forward_head(padding_changed, REAL), pooled)
    layers = group_parameters(encoder, encoder.group_matcher(), reverse=True)
    assert set(layers) == {name for name, _ in encoder.named_parameters()}
    assert {layers[name] for name in layers if name.startswith("embeddings")} == {0}
    assert layers["transformer.blocks.0.attention.projection.weight"] == 1
    assert layers["transformer.blocks.1.attention.projection.weight"] == 2
    assert all(layers[name] == 3 for name in layers if name.startswith(("transformer.final_norm", "pooler")))
    assert encoder.no_weight_decay() == {"pooler.attention.latent"} & set(layers)
    rebuilt = TextEncoder.from_settings(encoder.settings())
    rebuilt.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(rebuilt(IDS, REAL), pooled)


def test_mean_pooling_by_hand() -> None:
    encoder = TextEncoder(20, transformer=SMALL)
    tokens = torch.arange(8.0).view(1, 4, 2)
    real = torch.tensor([[True, True, False, False]])
    torch.testing.assert_close(encoder.forward_head(tokens, real), torch.tensor([[1.0, 2.0]]))
    assert encoder.forward_head(tokens, ~real & real).tolist() == [[0.0, 0.0]]


def test_two_segments_by_interpolation_equal_a_table() -> None:
    two, three = TextEmbeddings(20, 8, 16), TextEmbeddings(20, 8, 16, segments=3)
    with torch.no_grad():
        for name in ("token", "position"):
            getattr(three, name).weight.copy_(getattr(two, name).weight)
        three.segment.weight[:2] = two.segment.weight
    segments = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]])
    outs = [embeddings(IDS, segments) for embeddings in (two, three)]
    torch.testing.assert_close(*outs)
    probe = torch.randn_like(outs[0])
    for out in outs:
        (out * probe).sum().backward()
    torch.testing.assert_close(two.segment.weight.grad, three.segment.weight.grad[:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(two(IDS, None), two(IDS, torch.zeros_like(IDS)))


@pytest.mark.parametrize(("size", "millions"), [("tiny", 4.4), ("mini", 11.2), ("small", 28.8), ("base", 109.5)])
def test_published_sizes_have_the_published_parameters(size: str, millions: float) -> None:
    with torch.device("meta"):
        encoder = TextEncoder(30_522, size, pooling="pooler")
    assert round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e6, 1) == millions
    assert (encoder.config.depth, encoder.config.width, encoder.config.resolved_heads) == BERT_SIZES[size]


def test_rotary_has_no_limit_and_learned_says_its_own() -> None:
    rotary = TextEncoder(20, transformer=SMALL, positions="rotary", max_positions=4)
    assert rotary.forward_features(torch.ones(1, 9, dtype=torch.long)).shape == (1, 9, 16)
    learned = TextEncoder(20, transformer=SMALL, max_positions=4)
    with pytest.raises(UserError, match="9 tokens is longer than the position table of 4"):
        learned.forward_features(torch.ones(1, 9, dtype=torch.long))
    with pytest.raises(UserError, match="position table"):
        learned.check_length(5)


def test_rotations_made_in_inference_mode_serve_a_training_and_any_length() -> None:
    encoder = TextEncoder(20, transformer=SMALL, positions="rotary")
    with torch.inference_mode():
        encoder(IDS, REAL)
    encoder(IDS, REAL).sum().backward()
    assert encoder.transformer.blocks[0].attention.query_key_value.weight.grad.abs().sum() > 0
    # A longer text makes a longer table, whose beginning is the same.
    (before,) = encoder.rotations(4, IDS.device)
    after = [*encoder.rotations(9, IDS.device), *encoder.rotations(4, IDS.device)]
    for part, expected in enumerate(rotation_for(torch.arange(9), 8)):
        assert torch.equal(after[0][part], expected)
        assert torch.equal(before[part], expected[:4]) and torch.equal(after[1][part], expected[:4])


def test_two_bases_need_local_layers_with_rotary_positions() -> None:
    local = TransformerConfig(depth=2, width=16, heads=2, attention_window=1)
    encoder = TextEncoder(20, transformer=local, positions="rotary", local_rotary_base=7.0)
    (_, (_, sine)), again = encoder.rotations(4, IDS.device), TextEncoder.from_settings(encoder.settings())
    assert torch.equal(sine, rotation_for(torch.arange(4), 8, 7.0)[1]) and again.local_rotary_base == 7.0
    for settings in ({"transformer": local}, {"transformer": SMALL, "positions": "rotary"}):
        with pytest.raises(UserError, match="of rotary positions in local layers: set encoder.positions to rotary and"):
            TextEncoder(20, local_rotary_base=7.0, **settings)


def test_the_vocabulary_may_wait_but_not_change() -> None:
    encoder = TextEncoder(transformer=SMALL)
    assert encoder.vocabulary_size is None
    with pytest.raises(UserError, match="no vocabulary yet"):
        encoder(IDS)
    encoder.set_vocabulary(20)
    encoder.set_vocabulary(20)
    with pytest.raises(UserError, match="20 word pieces and the tokenizer 21"):
        encoder.set_vocabulary(21)


def test_order_matters_with_either_positions() -> None:
    for positions in ("learned", "rotary"):
        encoder = TextEncoder(20, transformer=SMALL, positions=positions)
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        one, other = encoder(torch.tensor([[2, 7, 8, 3]])), encoder(torch.tensor([[2, 8, 7, 3]]))
        assert (one - other).abs().max() > 1e-3, positions


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_nothing_stays_on_the_cpu_when_the_encoder_is_on_a_gpu(positions: str) -> None:
    mode = FakeTensorMode()
    # With rotary positions in windows too, which are cut into blocks where attention goes both ways.
    config = SMALL if positions == "learned" else replace(SMALL, attention_window=1)
    encoder = to_fake_cuda(TextEncoder(20, transformer=config, positions=positions, pooling="map"), mode)
    with mode, NoWaiting():
        ids = torch.ones(2, 4, dtype=torch.long, device="cuda")
        tokens = encoder.forward_features(ids, ids.bool(), ids, causal=True)
        assert encoder.forward_features(ids, ids.bool(), ids).device.type == "cuda"
        assert encoder.forward_head(tokens, ids.bool()).device.type == "cuda"


def test_causal_tokens_see_nothing_later_and_the_last_real_one_is_pooled() -> None:
    encoder = TextEncoder(20, transformer=SMALL, segments=0, pooling="end_of_text", causal=True).eval()
    features = encoder.forward_features(IDS, REAL)
    for place in range(3):
        later = IDS.clone()
        later[:, place + 1 :] = 5
        torch.testing.assert_close(encoder.forward_features(later)[:, : place + 1], features[:, : place + 1])
    pooled = encoder(IDS, REAL)
    torch.testing.assert_close(pooled, torch.stack([features[0, 3], features[1, 2]]))
    # Without a mask, a text ends at its highest id: 8 and 9 here.
    torch.testing.assert_close(encoder(IDS), torch.stack([features[0, 2], features[1, 1]]))
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    torch.testing.assert_close(encoder.forward_head(features, nothing), features[:, 0])
    again = TextEncoder.from_settings(encoder.settings())
    assert again.causal and again.pooling == "end_of_text"
    with pytest.raises(UserError, match="encoder with pooling: end_of_text"):
        encoder.save_pretrained("nowhere")
