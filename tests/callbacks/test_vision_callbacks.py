"""Panels, probes and shortcut checks beside a real training, in a real MLflow store."""

import mlflow
import PIL.Image
import pytest
import torch
from small_pictures import make_encoder, make_pictures, write_pictures
from toy_training import ToyData, ToyModule, make_trainer

from lit_pretrain.callbacks import OnlineProbe, Panels, ShortcutCheck
from lit_pretrain.callbacks.end_page import figures_table
from lit_pretrain.errors import UserError
from lit_pretrain.modules import VisionPretraining
from lit_pretrain.modules.optimization import AdamWConfig
from lit_pretrain.objectives import Colorization, Rotation
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.trainer import Trainer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "pictures.parquet")


@pytest.fixture
def data(pictures, tmp_path):
    return make_pictures(pictures, tmp_path / "caches")


def fitted(data, runs, *callbacks, **settings):
    """A short training with callbacks; the trainer, the module and the run's client."""
    logger = MLflowLogger("pictures", runs_directory=str(runs))
    defaults = {"max_steps": 20, "val_check_interval": 10, "check_val_every_n_epoch": None, "log_every_n_steps": 5}
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true",
        logger=logger,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        **defaults | settings,
    )
    torch.manual_seed(0)
    module = VisionPretraining(
        make_encoder(), [Rotation(), Colorization()], optimizer=AdamWConfig(learning_rate=3e-3), seed=0
    )
    trainer.fit(module, data)
    return trainer, module, mlflow.MlflowClient(logger.tracking_uri), logger.run_id


def test_a_panel_for_each_objective_and_step_in_mlflows_own_form(data, tmp_path):
    _, _, client, run_id = fitted(data, tmp_path / "runs", Panels(count=4, every_n_steps=5))
    names = [one.path for one in client.list_artifacts(run_id, "images")]
    for key in ("panels~rotation", "panels~colorization"):
        for step in (5, 10, 15, 20):
            found = [name for name in names if name.startswith(f"images/{key}+step+{step}+timestamp+")]
            assert sorted(name.rpartition(".")[2] for name in found) == ["png", "webp"]
            whole, small = (PIL.Image.open(client.download_artifacts(run_id, name)) for name in sorted(found)[::-1])
            if whole.format != "PNG":
                whole, small = small, whole
            assert max(small.size) <= 256 and len(whole.convert("RGB").getcolors(2**20)) > 50
        # The last step's under its plain name too, since the page's chart has little room for it.
        latest = PIL.Image.open(client.download_artifacts(run_id, f"{key.replace('~', '/')}.png"))
        assert latest.tobytes() == whole.tobytes()
    assert client.get_run(run_id).data.tags["mlflow.loggedImages"] == "True"


def test_panels_are_drawn_after_every_validation_and_leave_the_training_alone(data, tmp_path):
    trainer, with_panels, client, run_id = fitted(data, tmp_path / "runs")
    steps = {one.path.split("+")[2] for one in client.list_artifacts(run_id, "images")}
    # 0 is the untrained model.
    assert steps == {"0", "10", "20"}
    quiet = Panels(every_n_steps=1000)
    _, without, _, _ = fitted(make_pictures_again(data, tmp_path), tmp_path / "other", quiet, ShortcutCheck())
    assert all(torch.equal(one, without.state_dict()[name]) for name, one in with_panels.state_dict().items())


def make_pictures_again(data, tmp_path):
    return make_pictures(data.source.data_files, tmp_path / "caches")


def test_probes_tell_what_features_know_at_several_depths(data, tmp_path):
    trainer, module, client, run_id = fitted(data, tmp_path / "runs", OnlineProbe(train_pictures=90, test_pictures=24))
    for kind in ("knn", "linear"):
        for depth in (1, 2):
            history = client.get_metric_history(run_id, f"probe/{kind}_accuracy/block_{depth}")
            assert [one.step for one in history] == [10, 20]
            # Three colours, which any features hold: far above the chance of a third.
            assert history[-1].value > 0.6
    assert float(trainer.callback_metrics["probe/linear_accuracy/block_2"]) > 0.6
    assert module.training and all(one.grad is None for one in module.encoder.parameters())
    # Every figure of the closing table stands beside its chance, or a dash.
    table = figures_table(trainer, module, None)
    chance = dict(zip(*(map(str, table.columns[place].cells) for place in (0, -1)), strict=True))
    assert 0.33 <= float(chance["  knn_accuracy/block_1"]) < 0.6 and float(chance["  rotation/loss"]) > 1.38
    assert chance["  colorization/ab_error_of_grey"] == "-" and chance["validation"] == ""
    grey = float(trainer.callback_metrics["validation/colorization/ab_error_of_grey"])
    assert float(chance["  colorization/ab_error"]) == pytest.approx(grey, rel=1e-3)


def test_a_resumed_run_counts_its_validations_on(data, tmp_path):
    probe = OnlineProbe(train_pictures=90, test_pictures=24, every_n_validations=3)
    trainer, module, client, run_id = fitted(data, tmp_path / "runs", probe)
    assert not client.get_metric_history(run_id, "probe/knn_accuracy/block_1")
    trainer.save_checkpoint(tmp_path / "second.ckpt")

    again = OnlineProbe(train_pictures=90, test_pictures=24, every_n_validations=3)
    trainer = make_trainer(tmp_path / "runs", [again], max_steps=30, val_check_interval=10)
    trainer.fit(module, data, ckpt_path=str(tmp_path / "second.ckpt"))
    # The third of all, the first after the resumption.
    assert "probe/knn_accuracy/block_1" in trainer.callback_metrics


def test_what_leaks_is_seen_and_what_does_not_is_at_chance(data, tmp_path):
    check = ShortcutCheck(every_n_batches=1)
    _, _, client, run_id = fitted(data, tmp_path / "runs", check, max_steps=150, val_check_interval=50)
    metrics = client.get_run(run_id).data.metrics
    chance = metrics["shortcuts/rotation/borders/chance"]
    assert chance == pytest.approx(0.25) and metrics["shortcuts/rotation/borders/accuracy"] < chance + 0.1
    channels = metrics["shortcuts/colorization/input_channels/accuracy"]
    assert channels <= metrics["shortcuts/colorization/input_channels/chance"] + 1e-6
    # Checks go on where they were when a run is resumed.
    again = ShortcutCheck()
    again.load_state_dict(check.state_dict())
    assert set(again._restored) == set(check._classifiers)


def test_a_check_that_cannot_work_is_refused_before_training(pictures, data, tmp_path):
    unlabelled = make_pictures(pictures, tmp_path / "caches", label_column=None)
    with pytest.raises(UserError, match="OnlineProbe needs labels"):
        fitted(unlabelled, tmp_path / "runs", OnlineProbe())
    with pytest.raises(UserError, match="names block 7 of 2"):
        fitted(data, tmp_path / "runs", OnlineProbe(depths=[7]))
    # Pictures that are embedded by `predict` need no labels.
    OnlineProbe().setup(make_trainer(tmp_path / "runs", []), ToyModule(), "predict")
    with pytest.raises(UserError, match="nothing to check in ToyModule"):
        make_trainer(tmp_path / "toy", [ShortcutCheck()]).fit(ToyModule(), ToyData())
    for wrong in (lambda: Panels(every_n_steps=0), lambda: OnlineProbe(train_pictures=0), lambda: ShortcutCheck(0)):
        with pytest.raises(UserError, match="at least 1"):
            wrong()
