"""The shared Transformer: against PyTorch's own layer, masks, positions, and the options of public checkpoints."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_pretrain.backbone import Transformer, TransformerConfig, VisionTransformerConfig
from lit_pretrain.backbone.rotary import rotate, rotation_for
from lit_pretrain.errors import UserError


def copy_to_reference(ours: Transformer, norm_first: bool) -> torch.nn.TransformerEncoder:
    """PyTorch's encoder of the same shape with our weights."""
    config = ours.config
    layer = torch.nn.TransformerEncoderLayer(
        config.width,
        config.resolved_heads,
        config.resolved_feed_forward_width,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=config.norm_epsilon,
        batch_first=True,
        norm_first=norm_first,
    )
    norm = torch.nn.LayerNorm(config.width, eps=config.norm_epsilon) if norm_first else None
    theirs = torch.nn.TransformerEncoder(layer, config.depth, norm=norm, enable_nested_tensor=False)
    with torch.no_grad():
        for one, other in zip(theirs.layers, ours.blocks, strict=True):
            one.self_attn.in_proj_weight.copy_(other.attention.query_key_value.weight)
            one.self_attn.in_proj_bias.copy_(other.attention.query_key_value.bias)
            one.self_attn.out_proj.load_state_dict(other.attention.projection.state_dict())
            one.linear1.load_state_dict(other.feed_forward.expand.state_dict())
            one.linear2.load_state_dict(other.feed_forward.contract.state_dict())
            one.norm1.load_state_dict(other.attention_norm.state_dict())
            one.norm2.load_state_dict(other.feed_forward_norm.state_dict())
        if norm_first:
            theirs.norm.load_state_dict(ours.final_norm.state_dict())
    return theirs


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same weights every time."""
    torch.manual_seed(0)


def random_transformer(**settings: object) -> Transformer:
    """A small Transformer whose biases and norms are not at their trivial start."""
    transformer = Transformer(TransformerConfig(**{"depth": 2, "width": 24, "heads": 3} | settings))
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return transformer


@pytest.mark.parametrize("norm_order", ["post", "pre"])
@pytest.mark.parametrize("causal", [False, True])
def test_agrees_with_pytorch(norm_order: str, causal: bool) -> None:
    ours = random_transformer(norm_order=norm_order)
    theirs = copy_to_reference(ours, norm_order == "pre").train()
    tokens = torch.randn(4, 7, 24)
    real = torch.ones(4, 7, dtype=torch.bool)
    real[1, 5:] = False
    real[2, 1:] = False
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7) == float("-inf") if causal else None
    expected = theirs(tokens, mask=mask, src_key_padding_mask=~real)
    torch.testing.assert_close(ours(tokens, real, causal)[real], expected[real], atol=1e-5, rtol=1e-5)


def test_causal_without_padding_takes_the_unmasked_path_to_the_same_numbers() -> None:
    ours, tokens = random_transformer(), torch.randn(2, 6, 24)
    full = torch.ones(2, 6, dtype=torch.bool)
    torch.testing.assert_close(ours(tokens, None, causal=True), ours(tokens, full, causal=True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_a_fully_padded_row_is_finite_and_leaves_the_others_alone(dtype: torch.dtype, causal: bool) -> None:
    ours = random_transformer().to(dtype)
    tokens = torch.randn(3, 5, 24, dtype=dtype, requires_grad=True)
    real = torch.ones(3, 5, dtype=torch.bool)
    real[1] = False
    out = ours(tokens, real, causal)
    out.float().square().sum().backward()
    assert out.isfinite().all() and tokens.grad.isfinite().all()
    torch.testing.assert_close(out[[0, 2]], ours(tokens[[0, 2]], real[[0, 2]], causal))


def test_padding_never_changes_a_real_token() -> None:
    ours, tokens = random_transformer(), torch.randn(2, 6, 24)
    real = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    changed = tokens.clone()
    changed[1, 3:] = 100.0
    torch.testing.assert_close(ours(tokens, real)[real], ours(changed, real)[real])


def test_rotary_scores_depend_on_distance_only() -> None:
    query, key = torch.randn(8), torch.randn(8)
    rotation = rotation_for(torch.arange(20), 8)
    queries = rotate(query.expand(1, 1, 20, 8), rotation)[0, 0]
    keys = rotate(key.expand(1, 1, 20, 8), rotation)[0, 0]
    scores = queries @ keys.T
    for distance in (0, 3, -5):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    assert not torch.isclose(scores[0, 0], scores[0, 7])
    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(20))


def test_rotation_of_one_radian_by_hand() -> None:
    rotation = rotation_for(torch.tensor([0, 1]), 2)
    turned = rotate(torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2), rotation)[0, 0]
    torch.testing.assert_close(turned, torch.tensor([[1.0, 0.0], [0.5403023, 0.8414710]]))


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations make, as long as anything holds them: their number now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.held: set[int] = set()

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):  # noqa: ANN001, ANN204
        outputs = function(*arguments, **(settings or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.held:
                storage = tensor.untyped_storage()
                self.held.add(key)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.release, key, storage.nbytes())
        return outputs

    def release(self, key: int, count: int) -> None:
        """Nothing holds it any more."""
        self.held.discard(key)
        self.now -= count


def test_activation_checkpointing_gives_the_same_gradients_for_less_memory() -> None:
    tokens, depth = torch.randn(8, 64, 24), 6
    gradients, kept, most = [], [], []
    for enable in (False, True):
        torch.manual_seed(1)
        transformer = random_transformer(depth=depth, dropout=0.2, stochastic_depth=0.3, attention_dropout=0.1)
        transformer.set_grad_checkpointing(enable)
        torch.manual_seed(2)
        with LiveBytes() as live:
            loss = transformer(tokens).square().sum()
            kept.append(live.now / tokens.nbytes)
            loss.backward()
        most.append(live.most / tokens.nbytes)
        gradients.append([parameter.grad for parameter in transformer.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    # Of each block its input, and what is drawn; and in the backward pass all of one block.
    assert kept[1] < 2 * depth < 15 * depth < kept[0]
    assert most[1] < most[0] / 2


def windows_by_hand(places: torch.Tensor, window: int, real: torch.Tensor, causal: bool) -> torch.Tensor:
    """(B, 1, N, N), who sees whom: real tokens that are near, and oneself."""
    distance = places[:, None, :] - places[:, :, None]
    seen = (distance.abs() <= window) & real[:, None, :] & ((distance <= 0) | (not causal))
    return (seen | torch.eye(places.shape[1], dtype=torch.bool))[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["consecutive", "causal", "some places", "recomputed"])
def test_local_layers_see_what_is_near_and_global_ones_everything(way: str, dtype: torch.dtype) -> None:
    causal = way == "causal"
    config = {"norm_order": "pre", "attention_window": 3, "global_every": 2, "depth": 4, "query_key_norm": True}
    ours = random_transformer(**config).to(dtype)
    ours.set_grad_checkpointing(way == "recomputed")
    for length in (3, 8, 23):
        tokens = torch.randn(3, length, 24, dtype=dtype, requires_grad=True)
        real = torch.arange(length) < torch.tensor([[length], [length // 2], [0]])
        real[2, 0] = True
        places = torch.arange(length).expand(3, -1)
        if way == "some places":
            places = torch.stack([torch.randperm(3 * length)[:length] for _ in range(3)])
        turns, local_turns = rotation_for(torch.arange(3 * length), 8), rotation_for(torch.arange(3 * length), 8, 7.0)
        given = [tuple(part[places][:, None] for part in turn) for turn in (turns, local_turns)]
        out = ours(tokens, real, causal, *given, positions=places if way == "some places" else None)
        expected = tokens
        for index, block in enumerate(ours.blocks):
            window = 3 if index % 2 else 10**6
            expected = block(expected, windows_by_hand(places, window, real, causal), False, given[index % 2])
        expected = ours.final_norm(expected)
        tolerance = {"atol": 0.1, "rtol": 0.1} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(out[real], expected[real], **tolerance)
        gradients = [torch.autograd.grad(one[real].float().sin().sum(), tokens)[0] for one in (out, expected)]
        assert out.isfinite().all() and gradients[0].isfinite().all()
        if dtype == torch.float32:
            torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
        if way == "consecutive":
            # Nothing is padded: no mask is given.
            everything = torch.ones_like(real)
            torch.testing.assert_close(
                ours(tokens, None, False, *given), ours(tokens, everything, False, *given), **tolerance
            )


def test_attention_in_blocks_holds_no_more_scores_than_the_window_needs() -> None:
    ours, tokens = random_transformer(attention_window=4, global_every=3, depth=1), torch.randn(1, 256, 24)
    most = []
    for window in (None, 4):
        with torch.no_grad(), LiveBytes() as live:
            ours.blocks[0].bfloat16()(tokens.bfloat16(), None, False, None, window)
        most.append(live.most)
    assert most[1] < most[0] / 4


def test_norms_and_gates_by_hand() -> None:
    rms = random_transformer(norm="rms", norm_epsilon=0.5, query_key_norm=True)
    assert not [name for name in rms.state_dict() if "norm" in name and name.endswith("bias")]
    norm, tokens = rms.blocks[0].attention_norm, torch.randn(2, 5, 24)
    expected = tokens / (tokens.square().mean(-1, keepdim=True) + 0.5).sqrt() * norm.weight
    torch.testing.assert_close(norm(tokens), expected)
    modern = random_transformer(norm_order="pre", norm_bias=False, first_attention_norm=False, activation="geglu")
    assert {name for name in modern.state_dict() if "norm" in name} == {
        "blocks.0.feed_forward_norm.weight",
        "blocks.1.attention_norm.weight",
        "blocks.1.feed_forward_norm.weight",
        "final_norm.weight",
    }
    layer = modern.blocks[0].feed_forward
    gate, features = (tokens @ layer.expand.weight.T + layer.expand.bias).chunk(2, dim=-1)
    expected = (torch.nn.functional.gelu(gate) * features) @ layer.contract.weight.T + layer.contract.bias
    torch.testing.assert_close(layer(tokens), expected)


def test_layer_scale_and_stochastic_depth_act_on_the_branches() -> None:
    tokens = torch.randn(64, 3, 24)
    silent = random_transformer(norm_order="pre", layer_scale=1e-5)
    with torch.no_grad():
        for block in silent.blocks:
            for branch in (block.attention_branch, block.feed_forward_branch):
                branch[0].gamma.zero_()
    torch.testing.assert_close(silent(tokens), silent.final_norm(tokens))
    skipping = random_transformer(norm_order="pre", depth=2, stochastic_depth=0.5)
    assert torch.equal(skipping.blocks[0].attention_branch(tokens), tokens), "the first block is never skipped"
    assert not [name for name in skipping.state_dict() if "branch" in name], "checkpoints hold no rates"
    outcomes = skipping.blocks[1].attention_branch(torch.ones(1000, 1, 1)).flatten()
    assert set(outcomes.tolist()) == {0.0, 2.0} and 400 < (outcomes > 0).sum() < 600
    torch.testing.assert_close(skipping.eval()(tokens), skipping(tokens))


def test_the_final_norm_may_be_left_out() -> None:
    with_norm, tokens = random_transformer(norm_order="pre"), torch.randn(2, 5, 24)
    without = random_transformer(norm_order="pre", final_norm=False)
    without.load_state_dict(with_norm.state_dict(), strict=False)
    assert set(with_norm.state_dict()) - set(without.state_dict()) == {"final_norm.weight", "final_norm.bias"}
    torch.testing.assert_close(with_norm.final_norm(without(tokens)), with_norm(tokens))
    # After post-norm blocks there is none to leave out.
    assert set(random_transformer().state_dict()) == set(without.state_dict())


def test_intermediates_stop_after_the_last_block_asked_for() -> None:
    transformer, tokens = random_transformer(norm_order="pre", depth=3), torch.randn(2, 5, 24)
    ran = []
    for index, block in enumerate(transformer.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    second, first = transformer.forward_intermediates(tokens, [-2, 0])
    assert ran == [0, 1]
    torch.testing.assert_close(first, transformer.blocks[0](tokens))
    torch.testing.assert_close(transformer.final_norm(transformer.blocks[2](second)), transformer(tokens))
    torch.testing.assert_close(transformer.forward_intermediates(tokens, [2])[0], transformer(tokens))
    assert transformer.forward_intermediates(tokens, []) == []
    with pytest.raises(UserError, match="no block -4 in a Transformer of depth 3"):
        transformer.forward_intermediates(tokens, [0, -4])


def test_without_blocks_the_embedded_tokens_are_the_only_layer() -> None:
    tokens = torch.randn(2, 5, 24)
    bare = Transformer(TransformerConfig(depth=0, width=24, norm_order="post"))
    assert bare(tokens) is tokens and list(bare.parameters()) == []
    assert bare.forward_intermediates(tokens, [0, -1]) == [tokens, tokens]
    normed = random_transformer(depth=0, norm_order="pre")
    torch.testing.assert_close(normed.forward_intermediates(tokens, [0])[0], normed(tokens))
    with pytest.raises(UserError, match="no block 1 in a Transformer of depth 0"):
        bare.forward_intermediates(tokens, [1])
    with pytest.raises(UserError, match=r"transformer\.depth is -1: give at least 0"):
        TransformerConfig(depth=-1)
    with pytest.raises(UserError, match=r"transformer\.depth is 0: give at least 1"):
        VisionTransformerConfig(depth=0)


def test_flops_of_one_token_by_hand() -> None:
    # Per block: 4 x 64^2 projections and 2 x 64 x 256 feed-forward multiply-adds, and 2 x 10 x 64 for attention.
    config = TransformerConfig(depth=3, width=64)
    assert config.forward_flops_per_token(10) == 2 * 3 * (4 * 64**2 + 2 * 64 * 256 + 2 * 10 * 64)
    # A gate is one matrix more; of local layers, the second and the third, a window of 2 + 1 + 2 tokens counts.
    gated = TransformerConfig(depth=4, width=64, activation="geglu", attention_window=2)
    assert gated.forward_flops_per_token(10) == 2 * (4 * (4 * 64**2 + 3 * 64 * 256) + 2 * (2 * 10 + 2 * 5) * 64)
    assert gated.forward_flops_per_token(4) == 2 * 4 * (4 * 64**2 + 3 * 64 * 256 + 2 * 4 * 64)


def test_shapes_that_cannot_be_built_are_one_sentence() -> None:
    with pytest.raises(UserError, match="not a multiple"):
        TransformerConfig(width=100, heads=3)
    with pytest.raises(UserError, match=r"transformer\.attention_window is 0: give at least 1"):
        TransformerConfig(attention_window=0)
    with pytest.raises(UserError, match="and norm_order: post has none there: leave it out"):
        TransformerConfig(first_attention_norm=False)
    with pytest.raises(UserError, match="did you mean 'medium'"):
        TransformerConfig().sized("medum")
    assert TransformerConfig().sized("large").resolved_feed_forward_width == 4096
    with pytest.raises(UserError, match=r"'mini' has depth 4, and transformer\.depth is 1: leave one of the two"):
        TransformerConfig(depth=1).sized("mini")
    with pytest.raises(UserError, match="no ViT size 'mini'"):
        VisionTransformerConfig().sized("mini")
    tiny = VisionTransformerConfig(layer_scale=0.1).sized("tiny")
    assert tiny == VisionTransformerConfig(depth=12, width=192, heads=3, layer_scale=0.1)
