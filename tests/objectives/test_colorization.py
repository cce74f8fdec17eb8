"""Colorization: cells at their places by hand, both losses by hand, grey pictures, draws, and what could leak."""

import pytest
import torch
from fake_device import NoWaiting, to_fake_cuda
from photographs import crops
from small_classifier import accuracy
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_pretrain.backbone import VisionEncoder, VisionTransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.objectives import colorization as module
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.color_cells import cell_map, lightness_and_colors
from lit_pretrain.objectives.color_space import srgb_to_lab
from lit_pretrain.objectives.colorization import Colorization


def make_encoder(image_size: int = 16, patch_size: int = 4, **settings) -> VisionEncoder:
    torch.manual_seed(0)
    config = VisionTransformerConfig(depth=2, width=32, heads=2)
    return VisionEncoder(image_size, patch_size, transformer=config, **settings)


def built(encoder: VisionEncoder, **settings) -> Colorization:
    torch.manual_seed(1)
    objective = Colorization(**settings)
    objective.build(encoder)
    torch.nn.init.normal_(objective.head.weight, std=0.2)
    return objective


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 4, grey: int = 0, size: int = 16) -> dict[str, torch.Tensor]:
    """Crops of photographs, the first `grey` of them without colours."""
    images = crops(count, size, shrink=4)
    images[:grey] = images[:grey].mean(dim=1, keepdim=True)
    return {"images": images}


# -- cells


def test_cells_lie_where_they_belong() -> None:
    # Two by two patches of two by two cells; the head, an identity, tells of cell c of patch n the a of 10 n + c.
    encoder = make_encoder(8)
    objective = built(encoder, mode="regression")
    with torch.no_grad():
        objective.head.weight.zero_()
        for patch in range(4):
            for cell in range(4):
                objective.head.weight[2 * cell, patch] = (10 * patch + cell) / 110
    told, _ = objective.decode(torch.eye(4, 32))
    a, b = cell_map(told[None])[0]
    assert a.round().tolist() == [[0, 1, 10, 11], [2, 3, 12, 13], [20, 21, 30, 31], [22, 23, 32, 33]]
    assert not b.any()


@pytest.mark.parametrize(
    ("patch_size", "cells"), [(1, 1), (2, 1), (4, 2), (5, 1), (6, 3), (8, 4), (12, 4), (14, 2), (16, 4)]
)
def test_cells_of_a_patch(patch_size: int, cells: int) -> None:
    encoder = make_encoder(2 * patch_size, patch_size)
    assert Colorization().cells_of(encoder) == cells
    assert Colorization(cells_per_patch=1).cells_of(encoder) == 1


@pytest.mark.parametrize("statistics", [{}, {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}])
def test_the_encoder_sees_lightness_only(statistics) -> None:
    encoder = make_encoder(**statistics)
    batch = pictures()
    clean = batch["images"].clone()
    seen = built(encoder).make_pass(batch, encoder, draws()).inputs["images"] * encoder.std + encoder.mean
    torch.testing.assert_close(seen, (srgb_to_lab(clean)[:, :1] / 100).expand(-1, 3, -1, -1))
    assert torch.equal(batch["images"], clean)


# -- losses


def losses_by_hand(objective: Colorization, tokens: torch.Tensor, colors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything that is told of patches (M, D) and their colours (M, cells, 2), each (M, cells)."""
    outputs = objective.head(tokens).view(*colors.shape[:2], -1)
    if objective.bins is None:
        told, losses = 110 * outputs, (outputs - colors / 110).square().sum(dim=-1)
        scores = {"loss": losses}
    else:
        squared = (colors[..., None, :] - objective.bins.centers).square().sum(dim=-1)
        fifth = squared.sort(dim=-1).values[..., 4:5]
        soft = torch.where(squared <= fifth, torch.exp(-squared / 50), torch.zeros(()))
        losses = -(soft / soft.sum(dim=-1, keepdim=True) * outputs.log_softmax(dim=-1)).sum(dim=-1)
        nearest = squared.argmin(dim=-1)
        told = torch.softmax(outputs / 0.38, dim=-1) @ objective.bins.centers
        accuracy = (outputs.argmax(dim=-1) == nearest).float()
        scores = {"loss": losses * objective.bins.weights[nearest], "cross_entropy": losses, "accuracy": accuracy}
    return scores | {"ab_error": (told - colors).norm(dim=-1), "ab_error_of_grey": colors.norm(dim=-1)}


def tokens_and_colors(objective: Colorization, encoder: VisionEncoder, images: torch.Tensor):
    """Features (M, D) of the patches of pictures, and their cells' colours (M, cells, 2)."""
    features = encoder.forward_features(**objective.make_pass({"images": images}, encoder, draws()).inputs)
    return features[:, encoder.prefix_tokens :].flatten(0, 1), lightness_and_colors(images, 4, 2)[1].flatten(0, 1)


@pytest.mark.parametrize("mode", ["bins", "regression"])
def test_loss_and_scores_by_hand_without_the_grey_picture(mode) -> None:
    encoder = make_encoder(registers=2)
    objective = built(encoder, mode=mode, rebalancing=0.7).eval()
    batch = pictures(4, grey=1)
    objective.measure(batch["images"])
    output = objective(encoder, batch, draws())
    expected = losses_by_hand(objective, *tokens_and_colors(objective, encoder, batch["images"][1:]))
    torch.testing.assert_close(output.loss, expected["loss"].mean())
    assert {int(count) for _, count in output.statistics.values()} == {3 * 16 * 4}
    found = {name: total / count for name, (total, count) in output.statistics.items()}
    torch.testing.assert_close(found, {name: value.mean().detach() for name, value in expected.items()})
    if mode == "bins":
        assert objective.bins.weights.min() < 0.5 < 2 < objective.bins.weights.max(), "the weights must matter"


@pytest.mark.parametrize("mode", ["bins", "regression"])
def test_grey_pictures_alone_give_zero_and_no_gradient(mode) -> None:
    encoder = make_encoder()
    objective = built(encoder, mode=mode)
    output = objective(encoder, pictures(3, grey=3), draws())
    output.loss.backward()
    assert float(output.loss.detach()) == 0.0 and {float(count) for _, count in output.statistics.values()} == {0.0}
    for parameter in (*encoder.parameters(), *objective.parameters()):
        assert not parameter.grad.any() and parameter.grad.isfinite().all()


@pytest.mark.parametrize("mode", ["bins", "regression"])
def test_a_share_of_the_cells(mode) -> None:
    encoder = make_encoder()
    objective = built(encoder, mode=mode, cell_share=0.3).eval()
    batch = pictures(3)
    rows = objective.make_pass(batch, encoder, draws()).targets["rows"]
    assert rows.shape == (4, 3 * 5), "of each of four cells 5 of the 16 patches of each of three pictures"
    for cell in rows:
        assert len(set(cell.tolist())) == 15 and (cell // 16).bincount().tolist() == [5, 5, 5]
    assert len({tuple(cell.tolist()) for cell in rows}) == 4, "each cell has its own"

    output = objective(encoder, batch, draws())
    assert int(output.statistics["loss"][1]) == 60 and int(output.statistics["ab_error"][1]) == 192
    losses = losses_by_hand(objective, *tokens_and_colors(objective, encoder, batch["images"]))["loss"]
    torch.testing.assert_close(output.loss, losses.T.gather(1, rows).mean())


# -- learning


@pytest.mark.parametrize("settings", [{}, {"mode": "regression"}, {"cell_share": 0.5}])
def test_gradients_reach_every_parameter_in_float32_and_bfloat16(settings) -> None:
    encoder = make_encoder()
    objective = built(encoder, **settings)
    batch = pictures(4, grey=1)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = objective(encoder, batch, draws())
        output.loss.backward()
        assert output.loss.dtype == torch.float32
        for part in (encoder, objective):
            for name, parameter in part.named_parameters():
                assert parameter.grad.isfinite().all() and parameter.grad.any(), name
                parameter.grad = None
        assert all(total.isfinite() for total, _ in output.statistics.values())


def test_the_head_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder()
    objective = built(encoder).eval()
    whole = objective(encoder, pictures(3), draws())
    monkeypatch.setattr(module, "PATCHES_AT_ONCE", 7)
    monkeypatch.setattr(module, "PICTURES_AT_ONCE", 2)
    torch.testing.assert_close(objective(encoder, pictures(3), draws()), whole)
    objective.measure(pictures(3)["images"])
    prior = objective.bins.prior.clone()
    monkeypatch.undo()
    objective.measure(pictures(3)["images"])
    torch.testing.assert_close(objective.bins.prior, prior)


def test_training_scores_a_draw_of_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCORED_CELLS", 40)
    encoder = make_encoder()
    objective = built(encoder)
    found = [objective(encoder, pictures(3), draws(seed)) for seed in (0, 0, 1)]
    assert {int(one.statistics["accuracy"][1]) for one in found} == {40}
    assert int(found[0].statistics["cross_entropy"][1]) == 192
    errors = [float(one.statistics["ab_error"][0]) for one in found]
    assert errors[0] == errors[1] != errors[2]


@pytest.mark.parametrize("mode", ["bins", "regression"])
def test_it_learns_the_colours_of_a_handful_of_pictures(mode) -> None:
    encoder = make_encoder()
    objective = Colorization(mode)
    objective.build(encoder)
    batch = pictures(6)
    objective.measure(batch["images"])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        objective(encoder, batch, draws()).loss.backward()
        optimizer.step()
    statistics = objective.eval()(encoder, batch, draws()).statistics
    error, error_of_grey = (float(statistics[name][0] / 384) for name in ("ab_error", "ab_error_of_grey"))
    assert error < 0.6 * error_of_grey


# -- the data


def test_frequencies_are_measured_on_pictures_with_colours_and_kept_in_checkpoints() -> None:
    encoder = make_encoder()
    objective, other, fresh = (built(encoder) for _ in range(3))
    images = pictures(5, grey=2)["images"]
    objective.measure(images)
    other.measure(images[2:])
    torch.testing.assert_close(objective.bins.prior, other.bins.prior)
    assert not torch.equal(objective.bins.weights, fresh.bins.weights)
    fresh.load_state_dict(objective.state_dict())
    assert torch.equal(objective.bins.weights, fresh.bins.weights)
    with pytest.raises(UserError, match="None of the 2 pictures"):
        objective.measure(images[:2])
    built(encoder, mode="regression").measure(images[:2])


def test_data_and_settings_that_cannot_work_are_refused() -> None:
    encoder = make_encoder()
    Colorization().check_data(encoder, DataFacts(stored_size=32, grey_share=0.9))
    with pytest.raises(UserError, match="99.5% of the pictures are grey"):
        Colorization().check_data(encoder, DataFacts(stored_size=32, grey_share=0.995))
    with pytest.raises(UserError, match="cells_per_patch is 3, which does not divide encoder.patch_size 4"):
        Colorization(cells_per_patch=3).check_data(encoder, DataFacts(stored_size=32))
    for name, value in {"rebalancing": 1.5, "temperature": 0.0, "cell_share": 0.0, "sigma": -1.0}.items():
        with pytest.raises(UserError, match=f"Colorization.{name} is {value}"):
            Colorization(**{name: value})


# -- shortcuts, panel, costs


def test_channels_are_equal_and_colours_left_in_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder()
    objective = built(encoder)
    batch = pictures(200)
    objective.measure(batch["images"])
    found = objective.shortcuts(encoder, batch, draws())
    assert set(found) == {"positions_only", "input_channels"}
    channels = found["input_channels"]
    assert channels.features.shape == (200 * 16, 2) and not channels.features.any()
    most_frequent = float(channels.labels.bincount().max() / len(channels.labels))
    assert accuracy(found["positions_only"]) < most_frequent + 0.1

    show_colors(monkeypatch)
    assert accuracy(objective.shortcuts(encoder, batch, draws())["input_channels"]) > most_frequent + 0.3
    assert built(encoder, mode="regression").shortcuts(encoder, batch, draws()) == {}


def show_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the encoder see the picture instead of its lightness."""
    monkeypatch.setattr(
        module, "lightness_and_colors", lambda images, *cells: (images, lightness_and_colors(images, *cells)[1])
    )


def test_the_shortcuts_look_where_the_answer_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # Four patches of four vivid colours, which the channels' differences tell where they are left in.
    encoder = make_encoder(8)
    objective = built(encoder)
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]).T.view(3, 2, 2)
    images = torch.nn.functional.interpolate(colors[None], scale_factor=4).expand(60, -1, -1, -1)
    objective.measure(images)
    show_colors(monkeypatch)
    found = objective.shortcuts(encoder, {"images": images}, draws())
    assert found["input_channels"].labels.unique().tolist() == [0, 1, 2, 3]
    for shortcut, values in ((found["input_channels"], 4), (found["positions_only"], 16)):
        rows = torch.cat([shortcut.features, shortcut.labels[:, None]], dim=1).unique(dim=0)
        assert len(rows) == values == len(rows[:, :-1].unique(dim=0)), "a value, and so a place, has one answer"


def test_panel_shows_grey_told_and_true() -> None:
    encoder = make_encoder()
    for mode in ("bins", "regression"):
        objective = built(encoder, mode=mode)
        panels = [objective.examples(encoder, pictures(6), None, draws(), count) for count in (1, 5)]
        assert 3 * 96 < panels[0].width < 450 and 6 * 96 < panels[1].width < 900
        assert panels[1].height > 3 * 96


def test_what_it_costs() -> None:
    encoder = make_encoder()
    features = encoder.forward_features(**built(encoder).make_pass(pictures(5), encoder, draws()).inputs)
    assert built(encoder).pass_shape(encoder, 5, 17) == tuple(features.shape[:2]) == (5, 17)
    assert built(encoder).forward_flops(encoder, 5, 17) == 2 * 5 * 16 * 32 * 4 * 261
    assert built(encoder, cell_share=0.3).forward_flops(encoder, 5, 17) == 2 * 5 * 5 * 32 * 4 * 261
    assert built(encoder, mode="regression").forward_flops(encoder, 5, 17) == 2 * 5 * 16 * 32 * 4 * 2


@pytest.mark.parametrize("settings", [{}, {"mode": "regression"}, {"cell_share": 0.5}])
def test_nothing_stays_on_the_cpu_when_the_model_is_on_a_gpu(settings) -> None:
    encoder = make_encoder()
    objective = built(encoder, **settings)
    mode = FakeTensorMode()
    to_fake_cuda(encoder, mode)
    to_fake_cuda(objective, mode)
    with mode, NoWaiting(), torch.no_grad():
        batch = {"images": torch.rand(2, 3, 16, 16, device="cuda")}
        for training in (True, False):
            output = objective.train(training)(encoder, batch, None)
            assert {value.device.type for pair in output.statistics.values() for value in pair} == {"cuda"}
            assert output.loss.device.type == "cuda"
        for shortcut in objective.shortcuts(encoder, batch, None).values():
            assert shortcut.features.device.type == shortcut.labels.device.type == "cuda"


def test_settings_build_it_again() -> None:
    settings = Colorization("regression", cells_per_patch=1, cell_share=0.5, weight=2.0).settings()
    assert settings["class_path"] == "Colorization" and settings["init_args"]["cells_per_patch"] == 1
    assert Colorization(**settings["init_args"]).settings() == settings
