"""Rotation: directions by hand on a numbered picture, the order of the views, the loss, and what could leak."""

import numpy
import pytest
import torch
from fake_device import NoWaiting, to_fake_cuda
from photographs import crops
from scipy.fft import dctn
from small_classifier import accuracy
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_pretrain.backbone import VisionEncoder, VisionTransformerConfig
from lit_pretrain.objectives.layout_exchange import FREQUENCIES, exchange_layouts
from lit_pretrain.objectives.rotation import Rotation

QUARTER_TURNS = [
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]],
    [[3, 7, 11, 15], [2, 6, 10, 14], [1, 5, 9, 13], [0, 4, 8, 12]],  # anticlockwise: the right side comes up
    [[15, 14, 13, 12], [11, 10, 9, 8], [7, 6, 5, 4], [3, 2, 1, 0]],
    [[12, 8, 4, 0], [13, 9, 5, 1], [14, 10, 6, 2], [15, 11, 7, 3]],
]


def make_encoder(image_size: int = 16) -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(image_size, 4, transformer=VisionTransformerConfig(depth=2, width=32, heads=2))


def built(encoder: VisionEncoder, **settings) -> Rotation:
    objective = Rotation(**settings)
    objective.build(encoder)
    return objective


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_four_views_of_each_picture_in_turn_without_loss() -> None:
    numbers = torch.arange(16.0).view(1, 1, 4, 4) + torch.tensor([0.0, 100.0]).view(2, 1, 1, 1)
    views, labels = Rotation().turn(numbers, None)
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert views[:4, 0].tolist() == QUARTER_TURNS
    assert torch.equal(views[4:], views[:4] + 100)


def test_one_random_view_of_each_picture() -> None:
    numbers = torch.arange(16.0).view(1, 1, 4, 4).expand(400, 3, -1, -1)
    views, labels = Rotation("random").turn(numbers, draws())
    assert torch.equal(views[:, 2], torch.tensor(QUARTER_TURNS).float()[labels])
    assert labels.bincount().min() > 70
    assert torch.equal(labels, Rotation("random").turn(numbers, draws())[1])
    assert not torch.equal(labels, Rotation("random").turn(numbers, draws(1))[1])


def test_loss_by_hand_and_the_clean_batch_stays_clean() -> None:
    encoder = make_encoder()
    objective = built(encoder)
    torch.nn.init.normal_(objective.classifier.weight)
    batch = {"images": torch.rand(3, 3, 16, 16, generator=draws())}
    clean = batch["images"].clone()
    output = objective(encoder, batch, draws())
    expected, right = [], torch.zeros(4)
    for image in clean:
        for turns in range(4):
            turned = torch.rot90(image, turns, dims=(1, 2))
            pooled = encoder(((turned - 0.5) / 0.5)[None])[0]
            scores = objective.classifier.weight @ pooled + objective.classifier.bias
            expected.append(-torch.log_softmax(scores, 0)[turns])
            right[turns] += scores.argmax() == turns
    torch.testing.assert_close(output.loss, torch.stack(expected).mean())
    for turns, angle in enumerate((0, 90, 180, 270)):
        total, count = output.statistics[f"accuracy_{angle}_degrees"]
        assert (float(total), int(count)) == (float(right[turns]), 3)
    assert torch.equal(batch["images"], clean)
    output.loss.backward()
    for module in (encoder, objective):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("views, factor", [("all", 4), ("random", 1)])
def test_what_it_costs(views, factor) -> None:
    encoder = make_encoder()
    objective = built(encoder, views=views)
    one = objective.make_pass({"images": torch.rand(5, 3, 16, 16)}, encoder, draws())
    features = encoder.forward_features(**one.inputs)
    assert objective.pass_shape(encoder, 5, 17) == tuple(features.shape[:2]) == (5 * factor, 17)
    assert objective.forward_flops(encoder, 5, 17) == 5 * factor * 2 * 32 * 4


def test_it_learns_a_handful_of_pictures() -> None:
    encoder = make_encoder()
    objective = built(encoder)
    batch = {"images": crops(8, 16, shrink=4)}
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        objective(encoder, batch, draws()).loss.backward()
        optimizer.step()
    total, count = objective(encoder, batch, draws()).statistics["accuracy"]
    assert float(total / count) > 0.6


def cut_off_below(images: torch.Tensor) -> torch.Tensor:
    """The last two rows repeat the one before: padding on one side, which tells all four angles."""
    images[:, :, -2:] = images[:, :, -3:-2]
    return images


def with_bars(images: torch.Tensor) -> torch.Tensor:
    """Black bars left and right: lying and upright pictures can be told apart."""
    images[..., :4] = images[..., -4:] = 0.0
    return images


@pytest.mark.parametrize("spoil, at_least", [(cut_off_below, 0.95), (with_bars, 0.45)])
def test_borders_tell_padded_pictures_from_clean_ones(spoil, at_least) -> None:
    encoder = make_encoder(32)
    objective = built(encoder)
    clean = accuracy(objective.shortcuts(encoder, {"images": crops(300, 32)}, draws())["borders"])
    leaky = accuracy(objective.shortcuts(encoder, {"images": spoil(crops(300, 32))}, draws())["borders"])
    assert clean < 0.33 and leaky > at_least


def test_compression_tells_crops_at_one_phase_from_crops_at_any() -> None:
    encoder = make_encoder(32)
    objective = built(encoder)
    found = {
        phase: accuracy(
            objective.shortcuts(encoder, {"images": crops(300, 32, quality=60, phase=phase)}, draws())[
                "compression_grid"
            ]
        )
        for phase in (2, None)
    }
    assert found[None] < 0.33 and found[2] > 0.6


def test_exchanged_layouts_tell_no_angle_and_leave_the_contours() -> None:
    encoder = make_encoder(32)
    images = crops(300, 32)
    found = {
        layout: accuracy(built(encoder, layout=layout).shortcuts(encoder, {"images": images}, draws())["color_layout"])
        for layout in ("own", "exchanged")
    }
    assert found["own"] > 0.34 and found["exchanged"] < 0.3, found
    # By scipy's cosine transform: what is low is another picture's, what is high is the picture's own.
    lengths = 0.2 + 0.2 * images  # far from where colours are cut off
    own, mixed = (
        dctn(part.numpy(), axes=(2, 3), norm="ortho") for part in (lengths, exchange_layouts(lengths, draws()))
    )
    high = numpy.ones_like(own, dtype=bool)
    high[..., :FREQUENCIES, :FREQUENCIES] = False
    numpy.testing.assert_allclose(mixed[high], own[high], atol=1e-4)
    # A quarter turn keeps the mean of every channel.
    numpy.testing.assert_allclose(*(numpy.sort(part[..., 0, 0], axis=0) for part in (own, mixed)), atol=1e-3)
    assert not numpy.allclose(mixed[..., 0, 0], own[..., 0, 0])


def test_panel_shows_every_view_and_the_answer() -> None:
    encoder = make_encoder()
    batch = {"images": crops(6, 16)}
    pictures = {
        views: built(encoder, views=views).examples(encoder, batch, None, draws(), count=5)
        for views in ("all", "random")
    }
    assert pictures["all"].height > 5 * 96 and pictures["all"].width > 4 * 96
    assert 2 * 96 < pictures["random"].height < 3 * 96 + 200


@pytest.mark.parametrize("views, layout", [("all", "own"), ("random", "exchanged")])
def test_nothing_stays_on_the_cpu_when_the_model_is_on_a_gpu(views, layout) -> None:
    encoder = make_encoder()
    objective = built(encoder, views=views, layout=layout)
    mode = FakeTensorMode()
    to_fake_cuda(encoder, mode)
    to_fake_cuda(objective, mode)
    with mode, NoWaiting(), torch.no_grad():
        batch = {"images": torch.rand(2, 3, 16, 16, device="cuda")}
        output = objective(encoder, batch, None)
        shortcuts = objective.shortcuts(encoder, batch, None)
        assert {value.device.type for pair in output.statistics.values() for value in pair} == {"cuda"}
        assert {one.features.device.type for one in shortcuts.values()} == {"cuda"} == {output.loss.device.type}


def test_settings_build_it_again() -> None:
    settings = Rotation("random", weight=2.0).settings()
    assert settings == {"class_path": "Rotation", "init_args": {"views": "random", "weight": 2.0, "layout": "own"}}
    assert Rotation(**settings["init_args"]).settings() == settings
