"""Fine-tuning from scratch and from what was pretrained."""

import pytest
import torch
from small_pictures import make_encoder, make_pictures, write_pictures

from lit_pretrain.errors import UserError
from lit_pretrain.modules import FineTuning, VisionPretraining
from lit_pretrain.modules.freezing import FreezingConfig
from lit_pretrain.modules.optimization import AdamWConfig
from lit_pretrain.objectives import MaskedImageModeling
from lit_pretrain.trainer import Trainer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "pictures.parquet")


@pytest.fixture
def data(pictures, tmp_path):
    return make_pictures(pictures, tmp_path / "caches")


def trainer(**settings):
    defaults = {"accelerator": "cpu", "precision": "32-true", "logger": False, "enable_checkpointing": False}
    return Trainer(**defaults | {"max_steps": 60, "enable_progress_bar": False} | settings)


def from_scratch(**settings):
    torch.manual_seed(0)
    defaults = {"optimizer": AdamWConfig(learning_rate=3e-3), "seed": 0}
    return FineTuning(make_encoder(), **defaults | settings)


@pytest.fixture
def pretrained(data, tmp_path):
    """A checkpoint of two steps of masked image modelling."""
    module = VisionPretraining(make_encoder(), [MaskedImageModeling()], seed=0)
    fit = trainer(max_steps=2)
    fit.fit(module, data)
    fit.save_checkpoint(tmp_path / "pretrained.ckpt")
    return tmp_path / "pretrained.ckpt", module


def test_it_learns_and_reports_and_loads_again(data, tmp_path):
    module = from_scratch(label_smoothing=0.1)
    fit = trainer()
    fit.fit(module, data)
    (result,) = fit.test(module, data, verbose=False)
    assert result["test/accuracy"] > 0.8 and result["test/loss"] < 0.8
    fit.save_checkpoint(tmp_path / "fine.ckpt")
    loaded = FineTuning.from_checkpoint(tmp_path / "fine.ckpt")
    assert loaded.classes == ["apple", "leaf", "sea"]
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(loaded.logits(images), module.eval().logits(images))
    rows = trainer(default_root_dir=tmp_path).predict(module, data)
    assert set(rows[0]["label"]) <= set(loaded.classes)
    assert torch.allclose(rows[0]["probability"].sum(dim=1), torch.ones(len(rows[0]["label"])))


def test_it_starts_from_the_pretrained_encoder(pretrained):
    path, module = pretrained
    tuned = FineTuning(init_from=str(path))
    assert all(torch.equal(one, module.encoder.state_dict()[name]) for name, one in tuned.encoder.state_dict().items())
    assert tuned.lineage["init_from_objectives"] == "MaskedImageModeling" and tuned.lineage["init_from_step"] == "2"


def test_a_frozen_encoder_stays_and_the_classifier_learns(data, pretrained):
    path, module = pretrained
    probe = FineTuning(init_from=str(path), freeze=FreezingConfig(blocks="all"), optimizer=AdamWConfig(learning_rate=3e-2), seed=0)
    trainer(max_steps=30).fit(probe, data)
    assert all(torch.equal(one, module.encoder.state_dict()[name]) for name, one in probe.encoder.state_dict().items())
    assert float(probe.head.weight.abs().max()) > 0.05


def test_layers_have_rates_of_their_own(data):
    module = from_scratch(layer_decay=0.5, head_factor=2.0)
    fit = trainer(max_steps=1)
    fit.fit(module, data)
    rates = {group["initial_lr"] for group in fit.optimizers[0].param_groups}
    assert rates == {3e-3 * factor for factor in (2.0, 1.0, 0.5, 0.25, 0.125)}


def test_mistakes_get_a_sentence(data, pictures, tmp_path, pretrained):
    path, _ = pretrained
    with pytest.raises(UserError, match="give one of the two"):
        FineTuning()
    with pytest.raises(UserError, match="give one of the two"):
        FineTuning(make_encoder(), init_from=str(path))
    with pytest.raises(UserError, match="does not exist"):
        FineTuning(init_from=str(tmp_path / "nothing.ckpt"))
    unlabelled = make_pictures(pictures, tmp_path / "caches", label_column=None)
    with pytest.raises(UserError, match="needs labels"):
        trainer().fit(from_scratch(), unlabelled)
    with pytest.raises(UserError, match="is a checkpoint of VisionPretraining"):
        FineTuning.from_checkpoint(path)
    broken = torch.load(path, weights_only=True)
    del broken["state_dict"]["encoder.embeddings.position"]
    torch.save(broken, tmp_path / "broken.ckpt")
    with pytest.raises(UserError, match="missing \\['embeddings.position'\\]"):
        FineTuning(init_from=str(tmp_path / "broken.ckpt"))
