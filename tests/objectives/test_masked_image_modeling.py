"""Masked image modelling: who is hidden, the authors' order of things as a reference, targets by hand, and learning."""

import pytest
import torch
from fake_device import NoWaiting, to_fake_cuda
from photographs import crops
from small_classifier import accuracy
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_pretrain.backbone import VisionEncoder, VisionTransformerConfig
from lit_pretrain.backbone.patch_embeddings import cut_patches
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.masked_image_modeling import MaskedImageModeling, join_patches, patch_statistics


def make_encoder(image_size: int = 16, patch_size: int = 4, **settings) -> VisionEncoder:
    torch.manual_seed(0)
    config = VisionTransformerConfig(depth=2, width=32, heads=2)
    return VisionEncoder(image_size, patch_size, transformer=config, **settings)


def built(encoder: VisionEncoder, **settings) -> MaskedImageModeling:
    torch.manual_seed(1)
    objective = MaskedImageModeling(**{"decoder_width": 16, "decoder_depth": 1} | settings)
    objective.build(encoder)
    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return objective


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 4, size: int = 16) -> dict[str, torch.Tensor]:
    return {"images": crops(count, size, shrink=4)}


# -- what is hidden


@pytest.mark.parametrize(("mask_ratio", "kept"), [(0.75, 4), (0.5, 8), (0.9, 2), (0.05, 15)])
def test_kept_and_hidden_patches_are_all_patches_once(mask_ratio: float, kept: int) -> None:
    encoder = make_encoder()
    targets = built(encoder, mask_ratio=mask_ratio).make_pass(pictures(6), encoder, draws()).targets
    assert targets["kept"].shape == (6, kept) and targets["hidden"].shape == (6, 16 - kept)
    both = torch.cat([targets["kept"], targets["hidden"]], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(16).expand(6, -1))
    assert len({tuple(row) for row in both.tolist()}) == 6, "each picture has its own draw"


def test_every_patch_is_hidden_equally_often_and_seeds_repeat() -> None:
    encoder = make_encoder()
    objective = built(encoder)
    batch = {"images": torch.zeros(4000, 3, 16, 16)}
    hidden, again, other = (objective.make_pass(batch, encoder, draws(seed)).targets["hidden"] for seed in (0, 0, 1))
    shares = hidden.flatten().bincount(minlength=16) / 4000
    torch.testing.assert_close(shares, torch.full((16,), 0.75), atol=0.03, rtol=0)
    assert torch.equal(hidden, again) and not torch.equal(hidden, other)


def test_the_encoder_sees_the_kept_patches_only() -> None:
    encoder = make_encoder()
    objective = built(encoder)
    batch = pictures()
    clean = batch["images"].clone()
    one = objective.make_pass(batch, encoder, draws())
    features = encoder.forward_features(**one.inputs)
    patches = cut_patches(batch["images"], 4)
    places = one.targets["hidden"][..., None].expand(-1, -1, 48)
    disturbed = {"images": join_patches(patches.scatter(1, places, torch.rand(places.shape)), 4)}
    same = objective.make_pass(disturbed, encoder, draws())
    torch.testing.assert_close(encoder.forward_features(**same.inputs), features)
    assert features.shape[:2] == objective.pass_shape(encoder, 4, 17) == (4, 5)
    assert torch.equal(batch["images"], clean)


# -- the decoder and the loss


def test_decoder_and_loss_as_the_authors_compute_them() -> None:
    encoder = make_encoder(registers=1)
    objective = built(encoder)
    batch = pictures()
    one = objective.make_pass(batch, encoder, draws())
    features = encoder.forward_features(**one.inputs)
    output = objective.compute(features, one.targets, batch, encoder)

    # Mask tokens are appended, all brought into the picture's order, positions added, and everything is predicted.
    decoder, kept, hidden = objective.decoder, one.targets["kept"], one.targets["hidden"]
    assert torch.equal(one.inputs["keep"], kept)
    restore = torch.cat([kept, hidden], dim=1).argsort(dim=1)
    tokens = decoder.embedding(features)
    patches = torch.cat([tokens[:, 2:], decoder.mask_token.expand(4, 12, -1)], dim=1)
    patches = patches.gather(1, restore[..., None].expand(-1, -1, 16)) + decoder.position
    predictions = decoder.prediction(decoder.transformer(torch.cat([tokens[:, :2], patches], dim=1)))[:, 2:]
    target = cut_patches(2 * batch["images"] - 1, 4)
    target = (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
    mask = torch.zeros(4, 16).scatter(1, hidden, 1.0)
    expected = ((predictions - target).square().mean(dim=-1) * mask).sum() / mask.sum()
    torch.testing.assert_close(output.loss, expected)
    total, count = output.statistics["loss"]
    assert float(count) == 48 and float(total / count) == pytest.approx(float(expected.detach()))


def test_targets_by_hand() -> None:
    patches = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]])
    mean, deviation = patch_statistics(patches)
    assert mean.tolist() == [[3.0], [5.0]]
    # Squares 4, 1, 0, 9 over three; an even patch has the root of the epsilon.
    torch.testing.assert_close(deviation, torch.tensor([[(14 / 3) ** 0.5], [1e-3]]))


@pytest.mark.parametrize("normalize_targets", [True, False])
def test_explained_variance_is_none_of_the_mean_and_all_of_the_truth(normalize_targets: bool) -> None:
    encoder = make_encoder()
    objective = built(encoder, normalize_targets=normalize_targets)
    batch = pictures()
    one = objective.make_pass(batch, encoder, draws())
    asked = cut_patches(one.inputs["images"], 4).gather(1, one.targets["hidden"][..., None].expand(-1, -1, 48))
    if normalize_targets:
        mean, deviation = patch_statistics(asked)
        asked = (asked - mean) / deviation
    for told, share in ((asked.mean().expand_as(asked), 0.0), (asked, 1.0), ((asked + asked.mean()) / 2, 0.75)):
        objective.decoder.forward = lambda *inputs, told=told: told
        explained, variance = objective.compute(None, one.targets, batch, encoder).statistics["explained_variance"]
        assert float(explained / variance) == pytest.approx(share, abs=1e-5)


def test_the_loss_is_of_hidden_patches_only() -> None:
    encoder = make_encoder()
    objective = built(encoder)
    one = objective.make_pass(pictures(), encoder, draws())
    features = encoder.forward_features(**one.inputs)
    patches = cut_patches(one.targets["images"], 4)
    losses = {}
    for which in ("kept", "hidden"):
        places = one.targets[which][..., None].expand(-1, -1, 48)
        images = join_patches(patches.scatter(1, places, torch.rand(places.shape)), 4)
        losses[which] = objective.compute(features, one.targets | {"images": images}, {}, encoder).loss
    loss = objective.compute(features, one.targets, {}, encoder).loss
    assert torch.equal(losses["kept"], loss) and not torch.equal(losses["hidden"], loss)


def test_joining_is_the_inverse_of_cutting() -> None:
    images = torch.arange(2 * 3 * 12 * 12.0).view(2, 3, 12, 12)
    assert torch.equal(join_patches(cut_patches(images, 4), 4), images)


# -- learning


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_reach_every_parameter_in_float32_and_bfloat16(autocast: bool) -> None:
    encoder = make_encoder()
    objective = built(encoder)
    batch = pictures()
    batch["images"][0] = 0.3  # even patches
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = objective(encoder, batch, draws())
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    for part in (encoder, objective):
        for name, parameter in part.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_it_learns_a_handful_of_pictures() -> None:
    encoder = make_encoder()
    torch.manual_seed(1)
    objective = MaskedImageModeling(mask_ratio=0.5, decoder_width=32)
    objective.build(encoder)
    batch = pictures(4)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        objective(encoder, batch, draws()).loss.backward()
        optimizer.step()
    explained, variance = objective(encoder, batch, draws()).statistics["explained_variance"]
    assert float(explained / variance) > 0.5


# -- the rest


def test_settings_that_cannot_work_are_refused() -> None:
    MaskedImageModeling().check_data(make_encoder(), DataFacts(stored_size=16))
    for mask_ratio in (0.99, 0.01):
        with pytest.raises(UserError, match=f"mask_ratio {mask_ratio} of the 16 patches"):
            MaskedImageModeling(mask_ratio).check_data(make_encoder(), DataFacts(stored_size=16))
    with pytest.raises(UserError, match="mask_ratio is 1.0"):
        MaskedImageModeling(1.0)
    with pytest.raises(UserError, match="decoder_width is 128 with 3 heads"):
        MaskedImageModeling(decoder_heads=3)
    with pytest.raises(UserError, match="decoder_depth is 0"):
        MaskedImageModeling(decoder_depth=0)


def test_what_the_decoder_costs() -> None:
    encoder = make_encoder()
    objective = built(encoder)
    # 17 tokens of width 16: projections 12 x 16 x 16, attention 2 x 17 x 16; 5 come in, 12 patches of 48 go out.
    block = 17 * (12 * 16 * 16 + 2 * 17 * 16)
    assert objective.forward_flops(encoder, 3, 5) == 3 * 2 * (block + 5 * 32 * 16 + 12 * 16 * 48)
    assert objective.decoder.transformer.config.resolved_heads == 1


def test_panel_shows_what_was_hidden_told_and_true(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_pretrain.objectives import masked_image_modeling as module

    encoder = make_encoder(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    objective = built(encoder)
    batch = pictures(5)
    panel = objective.examples(encoder, batch, None, draws(), count=5)
    assert 6 * 96 < panel.width < 900 and panel.height > 3 * 96

    # A decoder that tells the truth, normalised, must give the pictures back.
    seen = []
    monkeypatch.setattr(module, "grid", lambda rows, **_: seen.extend(rows))
    one = objective.make_pass(batch, encoder, draws())
    asked = objective.patches_asked(one.targets, 4)
    mean, deviation = patch_statistics(asked)
    objective.decoder.forward = lambda *_: (asked - mean) / deviation
    objective.examples(encoder, batch, None, draws(), count=5)
    assert [len(row) for row in seen] == [6, 6, 3]
    shown, told, true = seen[0][:3]
    torch.testing.assert_close(told, true, atol=1e-5, rtol=0)
    hidden = cut_patches(shown[None], 4)[0] == 0.5
    assert hidden.all(dim=1).nonzero()[:, 0].tolist() == one.targets["hidden"][0].sort().values.tolist()


def test_places_tell_nothing_unless_brightness_follows_them() -> None:
    encoder = make_encoder()
    objective = built(encoder)
    batch = {"images": crops(200, 16)}
    clean = accuracy(objective.shortcuts(encoder, batch, draws())["positions_only"])
    # A dark frame, as of an old photograph: the brighter quarters look to the middle.
    distance = torch.linspace(-1, 1, 16).abs()
    frame = {"images": batch["images"] * 0.1 + 0.9 - 0.45 * (distance + distance[:, None])}
    leaky = accuracy(objective.shortcuts(encoder, frame, draws())["positions_only"])
    even = objective.shortcuts(encoder, {"images": torch.full((200, 3, 16, 16), 0.5)}, draws())["positions_only"]
    assert clean < 0.4 and leaky > 0.7 and accuracy(even) < 0.33


def test_nothing_stays_on_the_cpu_when_the_model_is_on_a_gpu() -> None:
    encoder = make_encoder()
    objective = built(encoder)
    mode = FakeTensorMode()
    to_fake_cuda(encoder, mode)
    to_fake_cuda(objective, mode)
    with mode, NoWaiting(), torch.no_grad():
        batch = {"images": torch.rand(2, 3, 16, 16, device="cuda")}
        output = objective(encoder, batch, None)
        (shortcut,) = objective.shortcuts(encoder, batch, None).values()
        assert {value.device.type for pair in output.statistics.values() for value in pair} == {"cuda"}
        assert output.loss.device.type == shortcut.features.device.type == shortcut.labels.device.type == "cuda"


def test_settings_build_it_again() -> None:
    settings = MaskedImageModeling(0.6, decoder_heads=4, normalize_targets=False).settings()
    assert settings["class_path"] == "MaskedImageModeling" and settings["init_args"]["mask_ratio"] == 0.6
    assert MaskedImageModeling(**settings["init_args"]).settings() == settings
