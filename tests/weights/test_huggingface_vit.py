"""ViTs and CLIPs of transformers in, to 1e-5 in fp32."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining, FineTuning
from lit_pretrain.modules.starting_points import load_starting_point
from lit_pretrain.weights.huggingface_vit import PREPROCESSOR, load_tower, load_weights

COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PICTURE = {"image_size": 24, "patch_size": 8}
BLOCK = COMMON | {"intermediate_size": 77}
TEXT = BLOCK | {"vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 59}
CLIP = CLIPConfig(text_config=TEXT, vision_config=BLOCK | PICTURE | {"hidden_act": "gelu"}, projection_dim=20)
SIGLIP = SiglipConfig(text_config=TEXT, vision_config=BLOCK | PICTURE)
MODELS = {
    "ViT": lambda: ViTModel(ViTConfig(**BLOCK, **PICTURE, qkv_bias=False), add_pooling_layer=False),
    "DINOv2": lambda: Dinov2Model(Dinov2Config(**COMMON, **PICTURE, mlp_ratio=3)),
    "DINOv2 giant": lambda: Dinov2Model(Dinov2Config(**COMMON, **PICTURE, use_swiglu_ffn=True)),
    "registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**COMMON, **PICTURE, num_register_tokens=3)
    ),
    "CLIP": lambda: CLIPVisionModel(CLIP.vision_config),
    "SigLIP": lambda: SiglipVisionModel(SIGLIP.vision_config),
}


def write(model: torch.nn.Module, directory: Path) -> torch.nn.Module:
    """A directory as transformers writes it, with weights far from their start, and what prepares pictures."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    model.eval().save_pretrained(directory)
    picture = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], "do_center_crop": True}
    (directory / PREPROCESSOR).write_text(
        json.dumps(picture | {"size": {"shortest_edge": 32}, "crop_size": {"height": 24}})
    )
    return model


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """To 1e-5, relative to values of about 1."""
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


PICTURES = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_pictures_agree(name: str, tmp_path: Path) -> None:
    theirs = write(MODELS[name](), tmp_path)
    found = load_weights(tmp_path)
    encoder, expected = VisionEncoder.from_public(found), theirs(PICTURES)
    features = encoder.forward_features(PICTURES)
    close(features, expected.last_hidden_state)
    pooled = expected.last_hidden_state[:, 0] if expected.pooler_output is None else expected.pooler_output
    close(encoder.forward_head(features), pooled)
    assert encoder.channel_means == (0.4, 0.5, 0.6) and encoder.crop_share == 0.75 and found.left_out == []
    again = load_starting_point(str(tmp_path)).encoder
    assert again.settings() == encoder.settings() == VisionEncoder.from_pretrained(tmp_path).settings()


@torch.no_grad()
def test_heads_of_pictures_are_taken_or_named(tmp_path: Path) -> None:
    config = ViTConfig(**BLOCK, **PICTURE, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    theirs = write(ViTForImageClassification(config), tmp_path / "classes")
    start = load_starting_point(str(tmp_path / "classes"))
    close(start.encoder(PICTURES) @ start.head.weight.T + start.head.bias, theirs(PICTURES).logits)
    assert start.head.classes == ("cat", "dog")
    write(ViTModel(ViTConfig(**BLOCK, **PICTURE)), tmp_path / "pooler")
    assert load_weights(tmp_path / "pooler").left_out == ["pooler.dense.bias", "pooler.dense.weight"]
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    masked = write(ViTMAEForPreTraining(ViTMAEConfig(**BLOCK, **PICTURE, **decoder, mask_ratio=0.0)), tmp_path / "mae")
    found = load_weights(tmp_path / "mae")
    assert found.left_out and all(name.startswith("decoder.") for name in found.left_out)
    # In an order of its own, for the patches that are left.
    expected = masked.vit(PICTURES, noise=torch.arange(9.0).expand(3, 9)).last_hidden_state
    close(VisionEncoder.from_public(found).forward_features(PICTURES), expected)


@torch.no_grad()
def test_a_clip_is_both_towers(tmp_path: Path) -> None:
    theirs = write(CLIPModel(CLIP), tmp_path)
    text, vision = (load_tower(tmp_path, tower) for tower in ("text", "vision"))
    text_encoder, vision_encoder = TextEncoder.from_public(text), VisionEncoder.from_public(vision)
    ids = torch.tensor([[1, 7, 9, 59, 0, 0], [1, 5, 4, 3, 2, 59]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    expected = theirs(input_ids=ids, attention_mask=mask, pixel_values=PICTURES)
    for attention_mask in (mask, None):
        embeddings = text_encoder(ids, attention_mask) @ text.projection.T
        close(torch.nn.functional.normalize(embeddings, dim=-1), expected.text_embeds)
    real = mask.bool()
    close(text_encoder.forward_features(ids, mask)[real], expected.text_model_output.last_hidden_state[real])
    embeddings = vision_encoder(PICTURES) @ vision.projection.T
    close(torch.nn.functional.normalize(embeddings, dim=-1), expected.image_embeds)
    assert text.log_scale == vision.log_scale == pytest.approx(theirs.logit_scale.item())
    assert text_encoder.config.activation == "quick_gelu" and vision_encoder.config.activation == "gelu"

    module = ContrastivePretraining.from_pretrained(tmp_path)
    close(module.embed_pictures(PICTURES * vision_encoder.std + vision_encoder.mean), expected.image_embeds)
    assert module.objective.log_scale.item() == pytest.approx(text.log_scale) and module.embedding_width == 20
    assert isinstance(FineTuning(init_from=str(tmp_path)).encoder, VisionEncoder)
    assert FineTuning(init_from=f"{tmp_path}:text").encoder.causal


def test_what_cannot_be_taken_is_one_sentence(tmp_path: Path) -> None:
    write(SiglipModel(SIGLIP), tmp_path)
    assert load_starting_point(f"{tmp_path}:vision").encoder.pooling == "map"
    with pytest.raises(UserError, match="text tower of .* is SigLIP's, which no encoder here computes"):
        load_starting_point(f"{tmp_path}:text")

    def refused(words: str, **changes: object) -> None:
        content = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(content | changes))
        with pytest.raises(UserError, match=words):
            load_starting_point(str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps(content))

    write(ViTModel(ViTConfig(**BLOCK, **PICTURE)), tmp_path)
    refused("pictures of 25 pixels that its patches of 8 do not divide", image_size=25)
    refused("asks for the activation 'relu': ours are", hidden_act="relu")
    refused("missing transformer.blocks.2", num_hidden_layers=3)
    refused(r"shape \(1, 10, 32\) where \(1, 17, 32\) is expected", image_size=32)
    refused("tells of beit, which is neither BERT", model_type="beit")
    content = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(content.replace('"model_type": "vit"', '"model_type": "deit"'))
    with pytest.raises(UserError, match="is of a 'deit' of transformers, and VisionEncoder loads directories of timm"):
        VisionEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    (tmp_path / PREPROCESSOR).unlink()
    refused("has no preprocessor_config.json that tells image_mean and image_std")
