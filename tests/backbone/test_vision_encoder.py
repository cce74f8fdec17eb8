"""The vision encoder: pooling, kept patches, positions, timm's protocol, YAML settings, and what it refuses."""

import io
import subprocess
import sys
from dataclasses import asdict

import numpy
import pytest
import torch
from fake_device import NoWaiting, to_fake_cuda
from jsonargparse import ArgumentParser
from PIL import Image as PILImage
from timm.models import group_parameters
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_pretrain.backbone import VIT_SIZES, VisionEncoder, VisionTransformerConfig
from lit_pretrain.errors import UserError

SMALL = VisionTransformerConfig(depth=3, width=16, heads=2)
KINDS = {
    "ViT": {"pooling": "cls"},
    "mean of patches": {"registers": 2},
    "no prefix": {"class_token": False},
    "MAE": {"positions": "sincos"},
    "SigLIP": {"class_token": False, "pooling": "map"},
    "DeiT III": {"class_position": False, "pooling": "cls"},
    "CLIP": {"embedding_norm": True, "patch_bias": False, "pooling": "cls"},
    "normalised after pooling": {"norm_after_pooling": True},
}


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same weights every time."""
    torch.manual_seed(0)


def random_encoder(**settings: object) -> VisionEncoder:
    """A small encoder of 4 x 4 patches whose biases, norms and tokens are not at their trivial start."""
    encoder = VisionEncoder(**{"image_size": 8, "patch_size": 2, "transformer": SMALL} | settings)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def pictures(batch: int = 2, height: int = 8, width: int = 8) -> torch.Tensor:
    """Normalised pictures."""
    return torch.randn(batch, 3, height, width)


@pytest.mark.parametrize("kind", KINDS)
def test_every_encoder_answers_timms_questions(kind: str) -> None:
    encoder, images = random_encoder(**KINDS[kind]), pictures()
    prefix = encoder.prefix_tokens
    tokens = encoder.forward_features(images)
    assert tokens.shape == (2, prefix + 16, 16) and encoder.patch_tokens(tokens).shape == (2, 16, 16)
    pooled = encoder.forward_head(tokens)
    assert pooled.shape == (2, 16)
    torch.testing.assert_close(encoder(images), pooled)
    assert encoder(pictures(1, 4, 12)).shape == (1, 16)

    layers = group_parameters(encoder, encoder.group_matcher(), reverse=True)
    assert set(layers) == {name for name, _ in encoder.named_parameters()}
    assert {layers[name] for name in layers if name.startswith("embeddings")} == {0}
    for block in range(3):
        assert layers[f"transformer.blocks.{block}.attention.projection.weight"] == block + 1
    assert set(layers.values()) == set(range(3 + 2)), "embeddings, every block, and what follows the last"
    assert set(group_parameters(encoder, encoder.group_matcher(coarse=True), reverse=True)) <= set(layers)
    learned = {"embeddings.class_token", "embeddings.registers", "embeddings.position", "pooler.attention.latent"}
    assert encoder.no_weight_decay() == learned & set(layers)

    rebuilt = VisionEncoder.from_settings(encoder.settings()).eval()
    rebuilt.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(rebuilt(images), pooled)
    assert rebuilt.settings() == encoder.settings()


@pytest.mark.parametrize("kind", KINDS)
def test_kept_patches_are_the_transformer_on_a_subset_of_tokens(kind: str) -> None:
    encoder, images = random_encoder(**KINDS[kind]), pictures()
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(encoder.forward_features(images, everything), encoder.forward_features(images))
    keep = torch.tensor([[3, 7, 8], [0, 15, 4]])
    prefix = encoder.prefix_tokens
    embedded = encoder.embeddings(images)
    subset = torch.stack(
        [torch.cat([tokens[:prefix], tokens[prefix + kept]]) for tokens, kept in zip(embedded, keep, strict=True)]
    )
    torch.testing.assert_close(encoder.forward_features(images, keep), encoder.transformer(subset))


def test_without_positions_the_order_of_patches_is_unknown() -> None:
    encoder, images = random_encoder(registers=1), pictures()
    order = torch.randperm(16)
    blocks = images.view(2, 3, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 3, 2, 2)[:, order]
    shuffled = blocks.view(2, 4, 4, 3, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 8, 8)
    for with_positions in (False, True):
        tokens = encoder.forward_features(images, with_positions=with_positions)
        moved = encoder.forward_features(shuffled, with_positions=with_positions)
        expected = torch.cat([tokens[:, :2], tokens[:, 2:][:, order]], dim=1)
        assert torch.allclose(moved, expected, atol=1e-4) is not with_positions


def test_pooling_by_hand() -> None:
    tokens = torch.arange(12.0).view(1, 6, 2)
    encoder = VisionEncoder(registers=1, transformer=VisionTransformerConfig(depth=1, width=2, heads=1))
    assert encoder.forward_head(tokens).tolist() == [[7.0, 8.0]], "the mean of the four patches"
    real = torch.tensor([[True, True, True, True, False, False]])
    assert encoder.forward_head(tokens, real).tolist() == [[5.0, 6.0]]
    cls = random_encoder(pooling="cls")
    features = cls.forward_features(pictures())
    torch.testing.assert_close(cls.forward_head(features), features[:, 0])
    pooled_last = random_encoder(norm_after_pooling=True)
    features = pooled_last.forward_features(pictures())
    expected = pooled_last.pooled_norm(features[:, 1:].mean(1))
    torch.testing.assert_close(pooled_last.forward_head(features), expected)
    assert (
        not pooled_last.config.final_norm
        and sum(p.numel() for p in pooled_last.transformer.final_norm.parameters()) == 0
    )


def test_attention_pooling_ignores_the_prefix_and_what_is_not_real() -> None:
    encoder = random_encoder(pooling="map", registers=1)
    tokens = torch.randn(2, 2 + 16, 16)
    real = torch.rand(2, 18) < 0.7
    changed = torch.where(real[..., None], tokens, torch.randn_like(tokens))
    changed[:, :2] += 1.0
    torch.testing.assert_close(encoder.forward_head(changed, real), encoder.forward_head(tokens, real))
    assert not torch.allclose(encoder.forward_head(changed), encoder.forward_head(tokens))
    assert encoder.forward_head(tokens, torch.zeros_like(real)).isfinite().all()


def test_intermediates_are_the_blocks_outputs_and_the_last_is_normalised() -> None:
    encoder, images = random_encoder(), pictures()
    tokens, outputs = encoder.embeddings(images), []
    for block in encoder.transformer.blocks:
        tokens = block(tokens)
        outputs.append(tokens)
    last, first, again = encoder.forward_intermediates(images, [-1, 0, 2])
    torch.testing.assert_close(last, encoder.forward_features(images))
    torch.testing.assert_close(last, again)
    torch.testing.assert_close(first, outputs[0])
    torch.testing.assert_close(*encoder.forward_intermediates(images, (1, -2)))


def test_normalize_by_hand() -> None:
    encoder = VisionEncoder(transformer=SMALL, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    colours = torch.tensor([1.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert encoder.normalize(colours)[0, :, 0, 0].tolist() == [1.0, 1.0, 0.5]
    assert not {"mean", "std"} & set(encoder.state_dict())


@pytest.mark.parametrize("with_positions", [False, True])
def test_what_the_blocks_add_up_is_fp32_under_autocast(with_positions: bool) -> None:
    encoder = random_encoder()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder.forward_features(pictures(), torch.tensor([[1], [2]]), with_positions)
        assert tokens.dtype == encoder.embeddings(pictures(), None, with_positions).dtype == torch.float32
    half = encoder.to(torch.bfloat16)
    assert half(pictures().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.5), ("small", 21.7), ("base", 85.8), ("large", 303.3)])
def test_published_sizes_have_the_published_parameters(size: str, millions: float) -> None:
    with torch.device("meta"):
        encoder = VisionEncoder(224, 16, size=size, pooling="cls")
    assert round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e6, 1) == millions
    assert (encoder.config.depth, encoder.config.width, encoder.config.resolved_heads) == VIT_SIZES[size]


def test_no_encoder_waits_for_timm_unless_it_needs_it() -> None:
    code = "import sys; from lit_pretrain.backbone import TextEncoder, VisionEncoder; VisionEncoder(), TextEncoder(9);"
    code += "print([name for name in ('timm', 'torchvision', 'huggingface_hub') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_yaml_keeps_the_defaults_of_vit() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(VisionEncoder, "encoder")

    def build(**arguments: object) -> VisionEncoder:
        config = parser.parse_object({"encoder": {"class_path": "VisionEncoder", "init_args": arguments}})
        return parser.instantiate_classes(config).encoder

    some = build(transformer={"depth": 2, "width": 64}, mean=[0.4, 0.5, 0.6])
    assert some.config == VisionTransformerConfig(depth=2, width=64) and some.config.norm_order == "pre"
    assert some.settings()["mean"] == (0.4, 0.5, 0.6)
    tiny = build(size="tiny", transformer={"stochastic_depth": 0.1})
    assert tiny.config == VisionTransformerConfig(depth=12, width=192, heads=3, stochastic_depth=0.1)
    assert build().config == VisionTransformerConfig() and VisionTransformerConfig().norm_epsilon == 1e-6


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    images, keep, gradients = pictures(), torch.tensor([[3, 7, 8], [0, 15, 4]]), []
    encoder = random_encoder(transformer=VisionTransformerConfig(depth=3, width=16, heads=2, stochastic_depth=0.5))
    for enable in (False, True):
        encoder.train().zero_grad()
        encoder.set_grad_checkpointing(enable)
        torch.manual_seed(2)
        encoder.forward_features(images, keep).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(list(encoder.parameters()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_stochastic_depth_skips_branches_in_training_only() -> None:
    config = VisionTransformerConfig(depth=2, width=16, heads=2, stochastic_depth=0.5)
    # Enough samples that two draws are never alike.
    encoder, images = random_encoder(transformer=config), pictures(24)
    torch.testing.assert_close(encoder(images), encoder(images))
    encoder.train()
    assert not torch.allclose(encoder(images), encoder(images))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_on_the_cpu_when_the_encoder_is_on_a_gpu(kind: str) -> None:
    mode = FakeTensorMode()
    encoder = to_fake_cuda(VisionEncoder(8, 2, transformer=SMALL, **KINDS[kind]), mode)
    with mode, NoWaiting():
        images = encoder.normalize(torch.rand(2, 3, 8, 8, device="cuda"))
        keep = torch.ones(2, 5, dtype=torch.long, device="cuda")
        outputs = [
            encoder(images),
            encoder(images[..., :4]),
            encoder.forward_features(images, keep),
            encoder.forward_features(images, keep, with_positions=False),
            *encoder.forward_intermediates(images, [0, -1]),
        ]
        assert {output.device.type for output in outputs} == {"cuda"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 30}, "patch_size 4 does not divide encoder.image_size 30"),
        ({"channels": 1}, "encoder.mean has 3 values and encoder.std 3 for 1 channels"),
        ({"std": (1.0, 1.0)}, "encoder.mean has 3 values and encoder.std 2 for 3 channels"),
        ({"std": (1.0, 0.0, 1.0)}, "encoder.std is .* above 0"),
        ({"pooling": "cls", "class_token": False}, "pooling: cls reads the class token"),
        ({"registers": -1}, "encoder.registers is -1"),
        ({"patch_size": 0}, "encoder.patch_size is 0"),
        ({"size": "smal"}, "no ViT size 'smal' .did you mean 'small'."),
        (
            {"positions": "sincos", "transformer": VisionTransformerConfig(width=18, heads=2)},
            "multiple of 4, and transformer.width is 18",
        ),
    ],
)
def test_what_cannot_be_built_is_one_sentence(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VisionEncoder(**settings)


def test_pictures_that_do_not_fit_are_one_sentence() -> None:
    encoder = VisionEncoder(transformer=SMALL)
    with pytest.raises(UserError, match="33 x 32 pixels cannot be cut into patches of 4"):
        encoder(pictures(1, 33, 32))
    with pytest.raises(UserError, match="height, width"):
        encoder.forward_intermediates(torch.zeros(1, 4, 32, 32), [0])
    with pytest.raises(UserError, match="no block 3 in a Transformer of depth 3: give -3 to 2"):
        encoder.forward_intermediates(pictures(1, 32, 32), [3])


def ramp(size: int) -> torch.Tensor:
    """The same picture in any size, brighter to the right and downwards."""
    places = (torch.arange(size) + 0.5) / size
    return (255 * (places[:, None] * 0.6 + places * 0.4)).round().to(torch.uint8).expand(2, 3, size, size)


def test_one_rule_frames_pictures_of_any_size_as_they_were_trained_with() -> None:
    """Of squares that are larger than those of training, the same middle is seen, smaller; not a part of it."""
    encoder = random_encoder()
    stored = ramp(16)
    encoder.frame_as_stored(16, training=True)
    assert torch.equal(encoder.frame(stored), stored[..., 4:12, 4:12] / 255)
    for times in (2, 8):
        torch.testing.assert_close(encoder.frame(ramp(16 * times)), encoder.frame(stored), atol=1.5 / 255, rtol=0)
    encoder.frame_as_stored(8, training=False)
    assert encoder.framed_size == 16
    again = VisionEncoder.from_settings(encoder.settings())
    assert again.framed_size == 16 and torch.equal(again.frame(stored), encoder.frame(stored))
    encoder.frame_as_stored(4, training=True)
    assert encoder.framed_size == 8 and encoder.frame(stored[..., :4, :4]).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("stored", [8, 9, 11, 13, 29])
def test_pictures_are_framed_as_timms_transform_does(stored: int) -> None:
    from timm.data import create_transform, resolve_data_config

    from lit_pretrain.data.images.pictures import EncodedPicture, Square, decode
    from lit_pretrain.weights.timm_settings import config_of

    encoder = random_encoder()
    encoder.frame_as_stored(stored, training=True)
    pixels = numpy.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=numpy.uint8)
    PILImage.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    square = torch.tensor(decode(EncodedPicture(0, "noise", file.getvalue()), Square(stored)))
    settings = encoder.settings() | {"transformer": asdict(encoder.config.resolved())}
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=config_of(settings)["pretrained_cfg"]))
    expected = transform(PILImage.fromarray(pixels))
    found = encoder.normalize(encoder.frame(square[None]))[0]
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
