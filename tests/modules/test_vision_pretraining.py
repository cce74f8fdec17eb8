"""Pretraining on pictures through the suite's Trainer."""

import pytest
import torch
from small_pictures import make_encoder, make_pictures, write_pictures

from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.errors import UserError
from lit_pretrain.modules import VisionPretraining
from lit_pretrain.modules.optimization import AdamWConfig
from lit_pretrain.objectives import Colorization, MaskedImageModeling, PatchLocation, Rotation, compute_objectives
from lit_pretrain.trainer import Trainer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "pictures.parquet")


@pytest.fixture
def data(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return make_pictures(pictures, tmp_path / "caches")


def trainer(**settings):
    defaults = {"accelerator": "cpu", "precision": "32-true", "logger": False, "enable_checkpointing": False}
    return Trainer(**defaults | {"max_steps": 4, "enable_progress_bar": False} | settings)


def module(*objectives, **settings):
    torch.manual_seed(0)
    settings = {"optimizer": AdamWConfig(learning_rate=3e-3), "seed": 0} | settings
    return VisionPretraining(settings.pop("encoder", None) or make_encoder(), list(objectives), **settings)


def every_objective():
    return [Rotation(), PatchLocation(mode="tokens"), Colorization(), MaskedImageModeling()]


def test_any_mix_trains_and_reports_each(data):
    model = module(*every_objective())
    fit = trainer(max_steps=20, val_check_interval=10, check_val_every_n_epoch=None)
    fit.fit(model, data)
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    for name in ("rotation", "patch_location", "colorization", "masked_image_modeling"):
        assert metrics[f"validation/{name}/loss"] > 0
    assert {"validation/rotation/accuracy_90_degrees", "validation/colorization/ab_error"} <= metrics.keys()
    assert {"validation/patch_location/accuracy_top_left"} <= metrics.keys()
    total = sum(metrics[f"validation/{one.name}/loss"] for one in model.objectives)
    assert metrics["validation/loss"] == pytest.approx(total, rel=0.02)


def test_rotation_is_learned(data):
    model = module(Rotation())
    fit = trainer(max_steps=150)
    fit.fit(model, data)
    (result,) = fit.validate(model, data, verbose=False)
    # The sky is light above and dark below: far more than the chance of a quarter.
    assert result["validation/rotation/accuracy"] > 0.8


def test_the_loss_is_the_weighted_sum_and_the_draws_are_of_the_step(data):
    weighted = module(Rotation(weight=0.5), Colorization(weight=2.0))
    data.setup("fit")
    weighted.build()
    batch = weighted.prepare(data.batch_at(0, 0), None)
    outputs = compute_objectives(weighted.encoder, weighted.objectives, batch, torch.Generator().manual_seed(0))
    expected = 0.5 * outputs["rotation"].loss + 2.0 * outputs["colorization"].loss
    assert weighted.sum_losses(outputs).item() == pytest.approx(expected.item())


def test_training_views_vary_and_evaluation_is_the_middle(data):
    data.setup("fit")
    model = module(Rotation(), augmentation=ImageAugmentation(padding=2), encoder=make_encoder(image_size=12))
    model.encoder.frame_as_stored(16, training=True)
    batch = data.batch_at(0, 0)
    plain = model.prepare(batch, None)
    assert torch.equal(plain["images"], batch["images"][:, :, 2:14, 2:14].float() / 255)
    varied = [model.prepare(batch, model.generator_for("augmentation", seed))["images"] for seed in (1, 1, 2)]
    assert torch.equal(varied[0], varied[1]) and not torch.equal(varied[0], varied[2])
    assert varied[0].shape == (8, 3, 12, 12)


def test_two_trainings_are_alike_to_the_bit(data):
    weights = []
    for _ in range(2):
        model = module(*every_objective())
        trainer().fit(model, data)
        weights.append(model.state_dict())
    assert [name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])] == []


def test_a_checkpoint_loads_without_data_and_with_what_was_measured(data, tmp_path):
    model = module(*every_objective(), augmentation=ImageAugmentation(flip=0.0))
    fit = trainer()
    fit.fit(model, data)
    fit.save_checkpoint(tmp_path / "one.ckpt")
    loaded = VisionPretraining.from_checkpoint(tmp_path / "one.ckpt")
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    # The colours' frequencies are the data's, not even.
    prior = loaded.objectives[2].bins.prior
    assert float(prior.max() / prior.min().clamp(min=1e-12)) > 2
    assert loaded.encoder.settings() == model.encoder.settings()


def test_what_does_not_fit_is_refused_before_training(data, pictures, tmp_path):
    for encoder, objective, words in (
        (make_encoder(image_size=32), Rotation(), "smaller than the encoder's image_size of 32"),
        (make_encoder(image_size=8), PatchLocation(mode="tokens"), "PatchLocation"),
    ):
        with pytest.raises(UserError, match=words):
            trainer().fit(module(objective, encoder=encoder), data)
    with pytest.raises(UserError, match="names rotation twice"):
        module(Rotation(), Rotation(views="random"))
    with pytest.raises(UserError, match="model.objectives is empty"):
        module()


def test_cost_counts_every_pass(data):
    data.setup("fit")
    batch = data.batch_at(0, 0)
    # Two blocks of width 32, 16 tokens: 2 * 2 * (12 * 32 * 32 + 2 * 16 * 32) a token, and the patch embedding.
    per_token = 2 * 2 * (12 * 32**2 + 2 * 16 * 32) + 2 * 48 * 32
    for views, factor in (("all", 4), ("random", 1)):
        model = module(Rotation(views=views))
        model.build()
        head = 2 * 8 * factor * 32 * 4
        expected = 3 * (8 * factor * 16 * per_token + head)
        assert model.step_cost(batch) == {"samples": 8, "flops": pytest.approx(expected)}


def test_embeddings_of_every_picture(data, tmp_path):
    model = module(Rotation())
    rows = trainer(default_root_dir=tmp_path).predict(model, data)
    ids = torch.cat([row["sample_id"] for row in rows])
    assert sorted(ids.tolist()) == list(range(120))
    assert torch.cat([row["embedding"] for row in rows]).shape == (120, 32)
