"""ViT weights of timm in and out, to 1e-5 in fp32."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from child_processes import in_own_process
from safetensors.torch import load_file, save_file
from timm.layers import SwiGLU
from timm.models import save_for_hf

from lit_pretrain.backbone import VisionEncoder, VisionTransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules.starting_points import load_starting_point
from lit_pretrain.weights.timm_settings import activation_of, is_swiglu
from lit_pretrain.weights.timm_vit import load_weights

# What each public family of checkpoints does differently; depth and size are cut for speed.
NARROW = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 2}
KINDS = {
    "tiny": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}),
    "small": ("vit_small_patch16_224", {"img_size": 48, "depth": 2}),
    "mean, no class token": ("vit_small_patch16_224", NARROW | {"class_token": False, "global_pool": "avg"}),
    "mean, norm before": ("vit_small_patch16_224", NARROW | {"global_pool": "avg", "fc_norm": False}),
    "LayerScale": ("vit_small_patch16_224", NARROW | {"init_values": 0.1}),
    "DeiT III": ("deit3_small_patch16_224", NARROW),
    "registers": ("vit_small_patch14_reg4_dinov2", NARROW),
    "registers with positions": (
        "vit_small_patch16_224",
        NARROW | {"reg_tokens": 3, "class_token": False, "global_pool": "avg"},
    ),
    "CLIP": ("vit_base_patch16_clip_quickgelu_224", NARROW),
    "SigLIP": ("vit_base_patch16_siglip_224", NARROW | {"act_layer": "gelu_tanh", "mlp_ratio": 3.7362}),
    "no biases, no final norm": (
        "vit_base_patch32_clip_224",
        NARROW | {"qkv_bias": False, "proj_bias": False, "final_norm": False},
    ),
    "norms of queries and keys": ("vit_small_patch16_224", NARROW | {"qk_norm": True}),
    "SwiGLU": ("vit_giant_patch14_dinov2", NARROW | {"mlp_ratio": 3.5, "qk_norm": True}),
    "no query, key and value bias": ("vit_small_patch16_224", NARROW | {"qkv_bias": False, "in_chans": 1}),
}


# What no config.json of timm's can tell.
UNTOLD_KINDS = {
    "SwiGLU in two matrices": ("vit_small_patch16_224", NARROW | {"mlp_layer": SwiGLU, "act_layer": "silu"}),
}


def theirs(kind: str, **settings: object) -> torch.nn.Module:
    """A model of timm's with weights far from their start, so that no bias, norm or gain is trivially right."""
    name, arguments = (KINDS | UNTOLD_KINDS)[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **arguments | settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return model.eval()


def pictures(encoder: VisionEncoder, size: int | None = None) -> torch.Tensor:
    """Three normalised pictures."""
    generator = torch.Generator().manual_seed(1)
    size = size or encoder.image_size
    return torch.randn(3, encoder.channels, size, size, generator=generator)


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5, relative to values of about 1."""
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def agree(encoder: VisionEncoder, model: torch.nn.Module, images: torch.Tensor) -> None:
    """Features, their pool and every block's output are equal."""
    features = encoder.forward_features(images)
    close(features, model.forward_features(images))
    close(encoder(images), model.forward_head(model.forward_features(images), pre_logits=True))
    prefix = encoder.prefix_tokens
    blocks = range(encoder.config.depth - 1)
    intermediates = model.forward_intermediates(images, list(blocks), output_fmt="NLC", intermediates_only=True)
    for one, other in zip(encoder.forward_intermediates(images, blocks), intermediates, strict=True):
        close(one[:, prefix:], other)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_directory_both_ways(kind: str, tmp_path: Path) -> None:
    model = theirs(kind)
    save_for_hf(model, tmp_path / "theirs")
    encoder = VisionEncoder.from_pretrained(tmp_path / "theirs")
    assert not encoder.training
    means = model.pretrained_cfg["mean"]
    assert encoder.channel_means == (tuple(means) if encoder.channels == 3 else (0.5,))
    images = pictures(encoder)
    agree(encoder, model, images)

    encoder.save_pretrained(tmp_path / "ours")
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {"config.json", "model.safetensors"}
    back = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True, num_classes=0).eval()
    agree(encoder, back, images)
    close(back(images), encoder(images))
    data = timm.data.resolve_model_data_config(back)
    assert tuple(data["mean"]) == encoder.channel_means and tuple(data["std"]) == encoder.channel_stds
    assert data["input_size"] == (encoder.channels, encoder.image_size, encoder.image_size)
    again = VisionEncoder.from_pretrained(tmp_path / "ours")
    assert again.settings() == encoder.settings()
    assert torch.equal(again(images), encoder(images))


POOLINGS = {"token": "cls", "avg": "mean", "map": "map"}


def untold(model: torch.nn.Module) -> dict[str, object]:
    """What the tensors of a model do not tell."""
    return {
        "heads": model.blocks[0].attn.num_heads,
        "activation": "swiglu" if is_swiglu(model.blocks[0].mlp) else activation_of(model.blocks[0].mlp.act),
        "norm_epsilon": model.blocks[0].norm1.eps,
        "pooling": POOLINGS[model.global_pool],
        "mean": (0.5,) * model.in_chans,
        "std": (0.25,) * model.in_chans,
    }


@pytest.mark.parametrize(
    ("kind", "suffix"), [("tiny", ".pth"), *((kind, ".safetensors") for kind in KINDS | UNTOLD_KINDS)]
)
@torch.no_grad()
def test_a_file_alone_gives_the_shape_and_no_more(kind: str, suffix: str, tmp_path: Path) -> None:
    model = theirs(kind)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        # As training loops save it, with the prefix of torch.compile.
        torch.save({"epoch": 3, "state_dict": {f"_orig_mod.{n}": t for n, t in model.state_dict().items()}}, path)
    else:
        save_file(model.state_dict(), path)
    encoder = VisionEncoder.from_pretrained(path, **untold(model))
    agree(encoder, model, pictures(encoder))
    for name in untold(model):
        proven = {"pooling": model.global_pool == "map", "heads": hasattr(model.blocks[0].attn.q_norm, "weight")}
        proven["activation"] = hasattr(model.blocks[0].mlp, "fc1_g")
        if not proven.get(name):
            rest = {other: value for other, value in untold(model).items() if other != name}
            with pytest.raises(UserError, match=f"do not tell {name}: give the name of timm's model"):
                VisionEncoder.from_pretrained(path, **rest)


# Where neither 64 features a head, plain GELU nor means of 0.5 would be right; the width is cut for speed.
NAMED = {
    "vit_huge_patch14_224.mae": {"embed_dim": 64},
    "vit_base_patch16_clip_quickgelu_224.openai": {"embed_dim": 48},
    "vit_so400m_patch14_siglip_gap_224.pali_mix": {"embed_dim": 64},
    "vit_small_patch14_dinov2.lvd142m": {"embed_dim": 48, "img_size": 70},
}


@pytest.mark.parametrize("name", NAMED)
@torch.no_grad()
def test_a_name_beside_a_file_tells_the_rest(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, narrow = timm.create_model, {"embed_dim": NAMED[name]["embed_dim"], "depth": 2}
    torch.manual_seed(0)
    model = real(name, num_classes=0, **NAMED[name] | narrow).eval()
    # As MAE's own files of its pretraining are.
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 64)} if "mae" in name else {}
    save_file(model.state_dict() | decoder, tmp_path / "weights.safetensors")
    monkeypatch.setattr(timm, "create_model", lambda *arguments, **given: real(*arguments, **given | narrow))
    found = load_weights(tmp_path / "weights.safetensors", name)
    encoder = VisionEncoder.from_public(found)
    assert found.left_out == sorted(decoder)
    assert encoder.channel_means == tuple(model.pretrained_cfg["mean"]) and encoder.config.heads != 1
    assert encoder.crop_share == model.pretrained_cfg["crop_pct"]
    agree(encoder, model, pictures(encoder)[:1])
    with pytest.raises(UserError, match="do not tell heads, activation, norm_epsilon, .*mean, std: give the name of"):
        VisionEncoder.from_pretrained(tmp_path / "weights.safetensors")


def test_a_wrong_name_beside_a_file_is_one_sentence(tmp_path: Path) -> None:
    # A ViT-S is among the models: in a process of its own, which gives all of it back.
    in_own_process(name_wrongly, tmp_path)


def name_wrongly(tmp_path: Path) -> None:
    """Each name that does not fit the file is a sentence."""
    path = tmp_path / "weights.safetensors"
    save_file(theirs("tiny").state_dict(), path)
    for architecture, message in (
        ("resnet18", "'resnet18', which is no ViT of timm's"),
        ("vit_tiny_patch16_225", r"no ViT of timm's .did you mean 'vit_tiny_patch16_224"),
        ("vit_small_patch16_224", "missing"),
        ("deit_tiny_distilled_patch16_224", "is a VisionTransformerDistilled"),
    ):
        with pytest.raises(UserError, match=message):
            VisionEncoder.from_pretrained(path, architecture=architecture)
    with pytest.raises(UserError, match="was given heads beside architecture, which tells it"):
        VisionEncoder.from_pretrained(path, architecture="vit_tiny_patch16_224", heads=3)
    with pytest.raises(UserError, match="was given architecture for vit_tiny_patch16_224, which tells it itself"):
        VisionEncoder.from_pretrained("vit_tiny_patch16_224", architecture="vit_tiny_patch16_224")


def test_a_directory_holds_more_files_than_its_weights(tmp_path: Path) -> None:
    model = theirs("tiny")
    save_for_hf(model, tmp_path, safe_serialization=True)
    save_file({name: value + 1 for name, value in model.state_dict().items()}, tmp_path / "adapter.safetensors")
    torch.save({"step": 3}, tmp_path / "a.bin")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        encoder = VisionEncoder.from_pretrained(source)
        agree(encoder, model, pictures(encoder))


@pytest.mark.parametrize("kind", ["tiny", "DeiT III", "registers", "mean, no class token"])
@torch.no_grad()
def test_another_image_size_as_timm_resizes(kind: str, tmp_path: Path) -> None:
    model = theirs(kind, dynamic_img_size=True)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = VisionEncoder.from_pretrained(tmp_path / "model.safetensors", **untold(model))
    for images in (pictures(encoder, 96), pictures(encoder, 16 * 2), pictures(encoder, 96)[..., :48]):
        agree(encoder, model, images)


@torch.no_grad()
def test_an_encoder_of_ours_with_fixed_positions_and_registers_loads_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = VisionTransformerConfig(depth=2, width=24, heads=3, feed_forward_width=77, layer_scale=0.0, dropout=0.1)
    encoder = VisionEncoder(
        16, 2, transformer=config, positions="sincos", registers=3, patch_bias=False, mean=(0.4, 0.5, 0.6)
    )
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    encoder.eval().save_pretrained(tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    agree(encoder, model, pictures(encoder))
    again = VisionEncoder.from_pretrained(tmp_path)
    assert again.positions == "learned" and again.config.dropout == 0.1 and again.channel_means == (0.4, 0.5, 0.6)
    close(again(pictures(encoder)), encoder(pictures(encoder)))


@torch.no_grad()
def test_a_name_comes_from_the_hubs_cache_without_network(tmp_path: Path) -> None:
    # The largest models of these tests, four of 22 MB at a time: in a process of its own, which gives all of it back.
    in_own_process(use_the_hubs_cache, tmp_path)


def use_the_hubs_cache(tmp_path: Path) -> None:
    """Names are looked for in a cache that is laid out as the hub's."""
    monkeypatch = pytest.MonkeyPatch()
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224").eval()
    repository = tmp_path / "models--timm--vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    for directory in ("refs", "snapshots/0"):
        (repository / directory).mkdir(parents=True)
    (repository / "refs/main").write_text("0")
    save_file(model.state_dict(), repository / "snapshots/0/model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    encoder = VisionEncoder.from_pretrained("vit_tiny_patch16_224")
    assert encoder.image_size == 224 and encoder.pooling == "cls" and encoder.config.depth == 12
    agree(encoder, model, pictures(encoder)[:1])
    for missing in ("vit_small_patch16_224", "hf-hub:someone/nothing"):
        with pytest.raises(UserError, match=f"of '{missing}' .the hub cannot be reached, and no copy is in its"):
            VisionEncoder.from_pretrained(missing)
    # By where it lies on the hub, as timm writes it: the config there tells the architecture, which must be a ViT's.
    own = tmp_path / "models--someone--small"
    encoder.save_pretrained(own / "snapshots" / "1")
    (own / "refs").mkdir()
    (own / "refs/main").write_text("1")
    for name in ("hf-hub:someone/small", "hf_hub:someone/small@main"):
        found = load_starting_point(name)
        assert found.lineage == {"init_from": name} and found.tokenizer is None
        agree(found.encoder, model, pictures(encoder)[:1])
        del found
    config = own / "snapshots/1/config.json"
    config.write_text(config.read_text().replace("vit_base_patch16_224", "resnet18"))
    with pytest.raises(UserError, match="'hf-hub:someone/small' is resnet18 and no ViT of timm's"):
        VisionEncoder.from_pretrained("hf-hub:someone/small")


def test_every_key_without_counterpart_is_named(tmp_path: Path) -> None:
    model = theirs("tiny")
    state, path = model.state_dict(), tmp_path / "model.safetensors"
    del state["blocks.1.norm1.bias"]
    save_file(state | {"blocks.2.attn.rope": torch.zeros(2), "head_dist.weight": torch.zeros(2)}, path)
    names = r"missing blocks.1.norm1.bias; unexpected blocks.2.attn.rope, head_dist.weight"
    with pytest.raises(UserError, match=names):
        VisionEncoder.from_pretrained(path, **untold(model))
    with pytest.raises(UserError, match="perhaps vit_tiny_patch16_224 or one of its variants"):
        VisionEncoder.from_pretrained(path)
    save_for_hf(model, tmp_path, safe_serialization=True)
    wrong = load_file(path) | {"cls_token": torch.zeros(1, 1, 7)}
    save_file(wrong, path)
    with pytest.raises(UserError, match=r"shape \(1, 1, 7\) where \(1, 1, 192\) is expected for 'cls_token'"):
        VisionEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet18", {}, "is a ResNet, not a VisionTransformer"),
        ("deit_tiny_distilled_patch16_224", {}, "is a VisionTransformerDistilled, not"),
        (
            "vit_tiny_patch16_224",
            {"scale_attn_norm": True},
            "has a norm of what the attention mixes, which VisionEncoder",
        ),
        ("vit_tiny_patch16_224", {"proj_bias": False}, "has biases of queries, keys and values alone"),
        ("vit_tiny_patch16_224", {"global_pool": "avgmax"}, "has pooling 'avgmax', which"),
        ("vit_tiny_patch16_224", {"pos_embed": "none", "act_layer": "relu"}, "the activation ReLU and no position"),
        ("vit_tiny_patch16_224", {"img_size": (224, 112)}, "has oblong pictures"),
        ("vit_tiny_patch16_224", {"norm_layer": "rmsnorm"}, "has norms of kind RmsNorm"),
        ("vit_tiny_patch16_224", {"img_size": 230}, "has pictures of 230 pixels that its patches of 16 do not divide"),
    ],
)
def test_what_we_lack_is_one_sentence(name: str, settings: dict, message: str, tmp_path: Path) -> None:
    save_for_hf(timm.create_model(name, **settings), tmp_path)
    with pytest.raises(UserError, match=message):
        VisionEncoder.from_pretrained(tmp_path)


def test_sources_that_are_none_are_one_sentence(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "absent", "neither a file or directory of ViT weights here nor a ViT of timm's"),
        ("resnet18", "neither a file"),
        (tmp_path, "lacks config.json"),
    ):
        with pytest.raises(UserError, match=message):
            VisionEncoder.from_pretrained(source)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_none", "pretrained_cfg": {}}))
    with pytest.raises(UserError, match="lacks weights"):
        VisionEncoder.from_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match="timm cannot build what .*config.json describes .Unknown model"):
        VisionEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="cannot be read as weights"):
        VisionEncoder.from_pretrained(path)
    weights = torch.arange(1000.0)
    torch.save({"weight": weights}, tmp_path / "weights.pth")
    content = bytearray((tmp_path / "weights.pth").read_bytes())
    content[content.find(weights.numpy().tobytes()) + 2000] ^= 1
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as weights \(\S*data/0 is not what was written"):
        VisionEncoder.from_pretrained(tmp_path / "weights.pth")
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="holds no ViT in timm's format"):
        VisionEncoder.from_pretrained(path)
    save_file(theirs("tiny").state_dict() | {"pos_embed": torch.zeros(1, 8, 192)}, path)
    with pytest.raises(UserError, match="8 positions for 1 class token"):
        VisionEncoder.from_pretrained(path)
    with pytest.raises(UserError, match="has 8 positions, which vit_tiny_patch16_224 cannot have"):
        VisionEncoder.from_pretrained(path, architecture="vit_tiny_patch16_224")
    torch.save({"state_dict": {"weight": 3}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="'weight', which are no tensors"):
        VisionEncoder.from_pretrained(tmp_path / "a.pth")
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(UserError, match="is no file of weights"):
        VisionEncoder.from_pretrained(tmp_path / "weights.npz")
    with pytest.raises(UserError, match="was given heads for vit_tiny_patch16_224, which tells it itself"):
        VisionEncoder.from_pretrained("vit_tiny_patch16_224", heads=4)


@pytest.mark.parametrize(
    ("settings", "transformer", "message"),
    [
        ({}, {"norm_order": "post"}, "norm_order: post"),
        ({"embedding_norm": True}, {}, "embedding_norm: true and patch_bias: true"),
        ({}, {"norm_epsilon": 1e-12}, r"norm_epsilon: 1e-12 .only 1e-06 and 1e-05"),
    ],
)
def test_what_timm_lacks_is_one_sentence(settings: dict, transformer: dict, message: str, tmp_path: Path) -> None:
    encoder = VisionEncoder(transformer=VisionTransformerConfig(depth=1, width=16, **transformer), **settings)
    with pytest.raises(UserError, match=f"cannot hold an encoder with {message}"):
        encoder.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
