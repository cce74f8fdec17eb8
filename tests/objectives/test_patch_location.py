"""Relative patch location: which neighbours are asked, what the encoder sees of them, the loss, and what could leak."""

import pytest
import torch
from fake_device import NoWaiting, to_fake_cuda
from photographs import crops
from small_classifier import accuracy
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lit_pretrain.backbone import VisionEncoder, VisionTransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.patch_location import PLACES, PatchLocation

MODES = ["crops", "tokens"]
STEPS = {
    "top_left": (-1, -1),
    "top": (-1, 0),
    "top_right": (-1, 1),
    "left": (0, -1),
    "right": (0, 1),
    "bottom_left": (1, -1),
    "bottom": (1, 0),
    "bottom_right": (1, 1),
}
CPU = torch.device("cpu")


def make_encoder(image_size: int = 32, **settings) -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(image_size, 4, transformer=VisionTransformerConfig(depth=2, width=32, heads=2), **settings)


def built(encoder: VisionEncoder, **settings) -> PatchLocation:
    objective = PatchLocation(**settings)
    objective.build(encoder)
    return objective


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return {"images": torch.rand(6, 3, 32, 32, generator=draws(9))}


def test_each_label_names_the_step_from_centre_to_neighbour() -> None:
    encoder = make_encoder(20)  # 5 x 5 patches
    crops_asked = PatchLocation().ask(encoder, 2, draws(), CPU)
    assert crops_asked["centres"].tolist() == [[4] * 8] * 2
    assert crops_asked["neighbours"].tolist() == [[0, 1, 2, 3, 5, 6, 7, 8]] * 2
    assert crops_asked["labels"].tolist() == [list(range(8))] * 2
    asked = PatchLocation("tokens", pairs=500).ask(encoder, 2, draws(), CPU)
    assert asked["labels"].flatten().bincount().min() > 80
    assert asked["centres"].unique().tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18], "never a centre at the border"
    for centre, neighbour, label in zip(*(asked[name].flatten().tolist() for name in asked), strict=True):
        step = neighbour // 5 - centre // 5, neighbour % 5 - centre % 5
        assert step == STEPS[PLACES[label]]


def test_patches_are_the_pictures_own_pixels_where_the_draws_say(batch) -> None:
    encoder = make_encoder()
    objective = PatchLocation(drop_colour="none")
    seen = objective.see(batch["images"], encoder, draws())
    moved = torch.randint(0, 2, (6, 9, 2), generator=draws())
    expected = []
    for picture in range(6):
        for cell in range(9):
            # Cells of 10 pixels begin at 1; a patch of 8 moves by a pixel and leaves the last free.
            top, left = (1 + 10 * (cell // 3) + moved[picture, cell, 0], 1 + 10 * (cell % 3) + moved[picture, cell, 1])
            expected.append(batch["images"][picture, :, top : top + 8, left : left + 8])
    assert torch.equal(seen, torch.stack(expected)), "so none is flipped, resized or in another order"
    inputs = objective.encoder_inputs(seen, encoder)["images"]
    torch.testing.assert_close(inputs.mean(dim=(1, 2, 3)), torch.zeros(54), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std(dim=(1, 2, 3), correction=0), torch.ones(54))
    plain = PatchLocation(drop_colour="none", normalize_patches=False).encoder_inputs(seen, encoder)["images"]
    torch.testing.assert_close(plain, 2 * seen - 1)


def test_each_patch_is_seen_alone(batch) -> None:
    encoder = make_encoder()
    objective = built(encoder, drop_colour="none")
    other = {"images": batch["images"].clone()}
    other["images"][0, :, :10, :10] = 0.0
    features = [
        objective.patch_features(encoder.forward_features(**objective.make_pass(one, encoder, draws()).inputs), encoder)
        for one in (batch, other)
    ]
    changed = (features[0] - features[1]).abs().amax(dim=-1) > 1e-4
    assert changed.nonzero().tolist() == [[0, 0]]


def test_tokens_carry_no_position(batch) -> None:
    encoder = make_encoder()
    objective = built(encoder, mode="tokens", drop_colour="none")
    order = torch.randperm(64, generator=draws())
    patches = batch["images"].unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3)[:, :, order]
    shuffled = patches.unflatten(2, (8, 8)).permute(0, 1, 2, 4, 3, 5).reshape(6, 3, 32, 32)
    features = [
        objective.patch_features(encoder.forward_features(**objective.encoder_inputs(images, encoder)), encoder)
        for images in (batch["images"], shuffled)
    ]
    torch.testing.assert_close(features[0][:, order], features[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_loss_by_hand_gradients_and_cost(mode, batch) -> None:
    encoder = make_encoder()
    objective = built(encoder, mode=mode, pairs=5, hidden_width=24)
    one = objective.make_pass(batch, encoder, draws())
    features = encoder.forward_features(**one.inputs)
    assert objective.pass_shape(encoder, 6, encoder.prefix_tokens + encoder.patches) == tuple(features.shape[:2])
    assert features.shape[:2] == ((54, 5) if mode == "crops" else (6, 65))
    with FlopCounterMode(display=False) as counter:
        output = objective.compute(features, one.targets, batch, encoder)
    assert objective.forward_flops(encoder, 6, features.shape[1]) == counter.get_total_flops()
    losses = []
    for picture in range(6):
        for pair in range(8 if mode == "crops" else 5):
            centre, neighbour, label = (int(value[picture, pair]) for value in one.targets.values())
            if mode == "crops":
                vectors = [features[9 * picture + patch, 1:].mean(dim=0) for patch in (centre, neighbour)]
            else:
                vectors = [features[picture, 1 + patch] for patch in (centre, neighbour)]
            losses.append(-torch.log_softmax(objective.head(torch.cat(vectors)), -1)[label])
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    counts = [int(output.statistics[f"accuracy_{place}"][1]) for place in PLACES]
    assert sum(counts) == len(losses) and (mode == "tokens" or counts == [6] * 8)
    output.loss.backward()
    for module in (encoder, objective):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    patch_positions = encoder.embeddings.position.grad[:, encoder.prefix_tokens :]
    assert bool(patch_positions.any()) == (mode == "crops")


@pytest.mark.parametrize("settings", [{}, {"drop_colour": "channels"}, {"mode": "tokens"}])
def test_the_same_generator_gives_the_same_draws_and_the_batch_stays_clean(settings, batch) -> None:
    encoder = make_encoder()
    objective = PatchLocation(**settings)
    clean = batch["images"].clone()
    first, same, other = (objective.make_pass(batch, encoder, draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.inputs["images"], same.inputs["images"])
    assert not torch.equal(first.inputs["images"], other.inputs["images"])
    assert all(torch.equal(first.targets[name], same.targets[name]) for name in first.targets)
    assert torch.equal(batch["images"], clean)


@pytest.mark.parametrize("mode, image_size", [("crops", 32), ("tokens", 16)])
def test_it_learns_a_handful_of_pictures(mode, image_size) -> None:
    encoder = make_encoder(image_size)
    objective = built(encoder, mode=mode, drop_colour="none")
    batch = {"images": crops(6, image_size, shrink=4)}
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=3e-3)
    for step in range(100):
        optimizer.zero_grad()
        objective(encoder, batch, draws(step)).loss.backward()
        optimizer.step()
    total, count = objective(encoder, batch, draws(1000)).statistics["accuracy"]
    assert float(total / count) > 0.3, "chance is 0.125"


def test_contours_leak_without_a_gap_and_hardly_with_one() -> None:
    encoder = make_encoder(36)
    batch = {"images": crops(300, 36)}
    found = {
        gap: accuracy(
            built(encoder, gap=gap, jitter=gap, drop_colour="none").shortcuts(encoder, batch, draws())["borders"]
        )
        for gap in (0.0, 0.1)
    }
    assert found[0.0] > 0.33 and found[0.1] < 0.2


def test_a_lens_leaks_through_colours_and_not_through_one_channel() -> None:
    encoder = make_encoder()
    images = crops(300, 32)
    aberrant = images.clone()
    for channel, scale in ((0, 1 / 1.05), (2, 1.05)):  # red is drawn larger than green, blue smaller
        places = torch.nn.functional.affine_grid(
            scale * torch.eye(2, 3).expand(300, -1, -1), [300, 1, 32, 32], align_corners=False
        )
        aberrant[:, channel : channel + 1] = torch.nn.functional.grid_sample(
            images[:, channel : channel + 1], places, padding_mode="border", align_corners=False
        )

    def leak(pictures: torch.Tensor, drop_colour: str) -> float:
        objective = built(encoder, drop_colour=drop_colour, drop_share=1.0)
        return accuracy(objective.shortcuts(encoder, {"images": pictures}, draws())["chroma_offsets"])

    assert leak(aberrant, "none") > 0.4
    assert leak(aberrant, "channels") < 0.17 and leak(images, "none") < 0.17


@pytest.mark.parametrize("positions, at_least", [("sincos", 0.95), ("learned", 0.25)])
def test_positions_leak_if_they_enter_and_do_not_otherwise(positions, at_least) -> None:
    encoder = make_encoder(positions=positions)
    objective = built(encoder, mode="tokens", pairs=100)
    batch = {"images": crops(30, 32)}
    assert accuracy(objective.shortcuts(encoder, batch, draws())["positions_only"]) < 0.17
    forward_features = encoder.forward_features
    encoder.forward_features = lambda images, with_positions: forward_features(images, with_positions=True)
    assert accuracy(objective.shortcuts(encoder, batch, draws())["positions_only"]) > at_least


@pytest.mark.parametrize("mode", MODES)
def test_panel_has_a_row_a_picture(mode, batch) -> None:
    encoder = make_encoder()
    panel = built(encoder, mode=mode).examples(encoder, batch, None, draws(), count=3)
    assert panel.height > 3 * 96 and panel.width > 3 * 96


@pytest.mark.parametrize("settings", [{}, {"drop_colour": "channels"}, {"mode": "tokens"}])
def test_nothing_stays_on_the_cpu_when_the_model_is_on_a_gpu(settings) -> None:
    encoder = make_encoder()
    objective = built(encoder, **settings)
    mode = FakeTensorMode()
    to_fake_cuda(encoder, mode)
    to_fake_cuda(objective, mode)
    with mode, NoWaiting(), torch.no_grad():
        batch = {"images": torch.rand(2, 3, 32, 32, device="cuda")}
        output = objective(encoder, batch, None)
        shortcuts = objective.shortcuts(encoder, batch, None)
        assert {value.device.type for pair in output.statistics.values() for value in pair} == {"cuda"}
        assert {one.features.device.type for one in shortcuts.values()} == {"cuda"} == {output.loss.device.type}


def test_pictures_that_are_too_small_are_refused_with_the_least_size_that_works() -> None:
    facts = DataFacts(stored_size=32)
    for objective, works, fails, message in [
        (PatchLocation(), 20, 16, "image_size 20"),
        (PatchLocation(gap=0.3, jitter=0.2), 24, 20, "image_size 24"),
        (PatchLocation(patch_pixels=8), 32, 28, "image_size 32"),
        (PatchLocation("tokens"), 12, 8, "at least 12"),
    ]:
        objective.check_data(make_encoder(works), facts)
        objective.make_pass({"images": torch.rand(2, 3, works, works)}, make_encoder(works), draws())
        with pytest.raises(UserError, match=message):
            objective.check_data(make_encoder(fails), facts)
    with pytest.raises(UserError, match="patch_pixels is 10, not a multiple"):
        PatchLocation(patch_pixels=10).check_data(make_encoder(), facts)


def test_settings_build_it_again_and_wrong_ones_are_refused() -> None:
    settings = PatchLocation("tokens", 0.2, 0.05, 8, "channels", 0.5, False, 7, 99, 2.0).settings()
    assert PatchLocation(**settings["init_args"]).settings() == settings
    assert settings["init_args"]["hidden_width"] == 99 and settings["class_path"] == "PatchLocation"
    for wrong in ({"gap": -0.1}, {"gap": 0.6, "jitter": 0.4}, {"drop_share": 1.5}, {"pairs": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            PatchLocation(**wrong)
