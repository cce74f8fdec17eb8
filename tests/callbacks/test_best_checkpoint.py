"""The best checkpoint by the metric that a module names, in a training, when it is gone on with, and by its name."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from toy_training import ToyData, ToyModule

from lit_pretrain.callbacks import BestCheckpoint
from lit_pretrain.callbacks.last_checkpoint import LastCheckpoint
from lit_pretrain.errors import UserError
from lit_pretrain.tracking.find import find_checkpoint, run_directory_of_checkpoint
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.trainer import Trainer


class Scored(ToyModule):
    """Its validations have the scores that were given, the higher the better, and a loss that falls."""

    monitor = ("validation/score", "max")

    def __init__(self, scores):
        super().__init__()
        self.scores = list(scores)

    def on_validation_epoch_end(self):
        if self.trainer.sanity_checking:
            return
        self.log("validation/score", torch.tensor(self.scores.pop(0)))


def make_trainer(runs, best, steps=20, callbacks=(), **settings):
    return Trainer(
        accelerator="cpu",
        precision="32-true",
        max_steps=steps,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        logger=MLflowLogger(experiment="toy", runs_directory=str(runs)),
        callbacks=[best, *callbacks],
        **settings,
    )


def fit(runs, scores, steps, keep=1, checkpoint=None):
    best = BestCheckpoint(save_top_k=keep)
    trainer = make_trainer(runs, best, steps)
    if checkpoint is not None:
        assert trainer.logger.resume_from(checkpoint)
    trainer.fit(Scored(scores), ToyData(), ckpt_path=checkpoint)
    return trainer, best


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One database for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield Path(os.environ["LIT_PRETRAIN_RUNS"])


def test_the_highest_score_is_kept_and_found(runs):
    trainer, best = fit(runs, [0.2, 0.7, 0.5], 60)
    directory = trainer.logger.run_directory / "checkpoints"
    assert sorted(path.name for path in directory.iterdir()) == ["best-step=000040.ckpt", "last.ckpt"]
    assert float(best.best_model_score) == pytest.approx(0.7)
    name = trainer.logger.run_id
    assert find_checkpoint(f"{name}:best") == (directory / "best-step=000040.ckpt").resolve()
    assert find_checkpoint(name) == (directory / "last.ckpt").resolve()


class StepsOfLast(Callback):
    """Which step last.ckpt is of, when a step begins."""

    def __init__(self):
        self.steps = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        path = trainer.logger.run_directory / "checkpoints" / "last.ckpt"
        if path.is_file():
            self.steps[trainer.global_step] = torch.load(path, weights_only=True)["global_step"]


@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 10}], ids=["epochs", "within an epoch"])
def test_the_last_checkpoint_is_of_the_last_validation_also_where_it_was_no_better(runs, settings):
    best, last = BestCheckpoint(), StepsOfLast()
    trainer = make_trainer(runs, best, 70, callbacks=[last], **settings)
    trainer.fit(Scored([0.7] + [0.2] * 9), ToyData())
    assert (last.steps[25], last.steps[45], last.steps[65]) == (20, 40, 60)
    assert best.best_model_path.endswith(f"best-step=0000{10 if settings else 20}.ckpt")


def test_last_as_a_link_stays_one_beside_what_is_saved_now_and_then(runs):
    linking = ModelCheckpoint(monitor="validation/score", mode="max", save_last="link")
    trainer = make_trainer(runs, linking, 60, callbacks=[LastCheckpoint(minutes=1e-9)], log_every_n_steps=5)
    trainer.fit(Scored([float("nan"), 0.7, 0.2]), ToyData())
    # Lightning's rule: the last one that it saved itself.
    assert Path(linking.last_model_path).resolve() == Path(linking.best_model_path).resolve()
    assert torch.load(linking.last_model_path, weights_only=True)["global_step"] == 40


@pytest.mark.parametrize("first", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_the_best(runs, first):
    trainer, best = fit(runs, [first, first], 40)
    directory = trainer.logger.run_directory / "checkpoints"
    assert [path.name for path in directory.iterdir()] == ["last.ckpt"]
    _, best = fit(runs, [first, 0.1, first], 60)
    assert best.best_model_path.endswith("best-step=000040.ckpt") and float(best.best_model_score) == pytest.approx(0.1)


class Spoilt(Scored):
    """Its score is highest where its loss is not a number, as accuracy may be of weights that are none."""

    def validation_step(self, batch, batch_index):
        loss = self.layer(batch["input_ids"]).pow(2).mean()
        self.log("validation/loss", loss * (float("nan") if self.scores[0] > 0.9 else 1.0))


def test_what_has_no_finite_loss_is_not_the_best_by_its_score(runs):
    best = BestCheckpoint()
    make_trainer(runs, best, 60).fit(Spoilt([0.2, 1.0, 0.1]), ToyData())
    assert best.best_model_path.endswith("best-step=000020.ckpt")


def test_going_on_compares_with_what_was_best(runs):
    trainer, _ = fit(runs, [0.2, 0.7], 40)
    last = str(trainer.logger.run_directory / "checkpoints" / "last.ckpt")
    trainer, best = fit(runs, [0.5], 60, checkpoint=last)
    assert best.mode == "max" and best.best_model_path.endswith("best-step=000040.ckpt")
    trainer, best = fit(runs, [0.8], 80, checkpoint=last)
    assert best.best_model_path.endswith("best-step=000080.ckpt")
    names = sorted(path.name for path in (trainer.logger.run_directory / "checkpoints").iterdir())
    assert names == ["best-step=000080.ckpt", "last.ckpt"]


def test_what_was_best_by_another_metric_is_not_compared_with(runs, monkeypatch):
    monkeypatch.setattr(Scored, "monitor", ("validation/score", "min"))
    trainer, best = fit(runs, [7.0, 5.0], 40)
    assert best.best_model_path.endswith("best-step=000040.ckpt")
    last = str(trainer.logger.run_directory / "checkpoints" / "last.ckpt")
    monkeypatch.setattr(Scored, "monitor", ("validation/other", "max"))
    monkeypatch.setattr(Scored, "log", lambda self, name, value: ToyModule.log(self, "validation/other", value))
    trainer, best = fit(runs, [0.4], 60, checkpoint=last)
    assert float(best.best_model_score) == pytest.approx(0.4) and best.mode == "max"
    assert find_checkpoint(f"{trainer.logger.run_id}:best").name == "best-step=000060.ckpt"


def test_of_several_that_are_kept_the_best_is_found_and_not_the_latest(runs):
    trainer, _ = fit(runs, [0.2, 0.7, 0.5], 60, keep=2)
    directory = trainer.logger.run_directory / "checkpoints"
    assert len(list(directory.glob("best-*.ckpt"))) == 2
    assert find_checkpoint(f"{trainer.logger.run_id}:best").name == "best-step=000040.ckpt"


def test_measuring_a_checkpoint_says_nothing_of_its_directory(runs, recwarn):
    trainer, _ = fit(runs, [0.2], 20)
    last = str(trainer.logger.run_directory / "checkpoints" / "last.ckpt")
    other = make_trainer(runs, BestCheckpoint())
    other.validate(Scored([0.3]), ToyData(), ckpt_path=last, verbose=False)
    assert not [one for one in recwarn if "dirpath" in str(one.message)]


def test_a_persons_own_checkpoints_are_found_and_drop_neither_best_nor_last(runs, tmp_path):
    own = ModelCheckpoint(
        tmp_path / "mine", "{epoch}-{validation/score:.1f}", monitor="validation/score", mode="max", save_last=False
    )
    periodic = ModelCheckpoint(filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = make_trainer(runs, own, steps=10)
    trainer.callbacks.insert(0, periodic)
    trainer.fit(Scored([0.2, 0.7, 0.1]), ToyData(batches=4))
    run = trainer.logger.run_id
    best, last = (
        tmp_path / "mine" / "epoch=1-validation" / "score=0.7.ckpt",
        trainer.logger.run_directory / "checkpoints",
    )
    assert find_checkpoint(f"{run}:best") == best and find_checkpoint(run) == last / "last.ckpt"
    assert {path.name for path in last.glob("*.ckpt")} == {"last.ckpt", "step=4.ckpt", "step=8.ckpt"}
    trainer.logger.flush()
    tags = trainer.logger.experiment.get_run(run).data.tags
    assert (tags["checkpoint.best"], tags["checkpoint.last"]) == (str(best), str(last / "last.ckpt"))
    # Where it keeps them, the run's own; a copy elsewhere is a start of another run.
    assert run_directory_of_checkpoint(best) == trainer.logger.run_directory
    assert run_directory_of_checkpoint(Path(shutil.copy(best, tmp_path / "copy.ckpt"))) is None


def test_without_a_metric_the_last_and_the_modules_best_are_kept(runs):
    trainer = make_trainer(runs, ModelCheckpoint(filename="every", every_n_epochs=1), steps=12)
    trainer.fit(Scored([0.2, 0.7, 0.1]), ToyData(batches=4))
    directory = trainer.logger.run_directory
    assert find_checkpoint(f"{trainer.logger.run_id}:best").name == "best-step=000008.ckpt"
    assert find_checkpoint(trainer.logger.run_id).name == "last.ckpt"
    # Of an earlier version, which noted nothing, and moved.
    (directory / "checkpoints.json").unlink()
    (directory / "checkpoints" / "best-step=000008.ckpt").rename(directory / "checkpoints" / "chosen.ckpt")
    moved = directory.rename(directory.with_name("moved"))
    state = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=True)
    state["callbacks"]["BestCheckpoint"]["best_model_path"] = str(directory / "checkpoints" / "chosen.ckpt")
    torch.save(state, moved / "checkpoints" / "last.ckpt")
    assert find_checkpoint(f"{moved}:best") == moved / "checkpoints" / "chosen.ckpt"


def test_a_moved_run_goes_on_comparing_with_what_was_best(runs):
    trainer, _ = fit(runs, [0.7], 20)
    moved = trainer.logger.run_directory.rename(trainer.logger.run_directory.with_name("moved-too"))
    # As a kill in the middle of a save leaves it.
    (moved / "checkpoints" / ".last.ckpt.4711.part").write_text("half")
    again, best = fit(runs, [0.5], 40, checkpoint=str(moved / "checkpoints" / "last.ckpt"))
    assert best.best_model_path == str(moved / "checkpoints" / "best-step=000020.ckpt")
    assert sorted(path.name for path in (moved / "checkpoints").iterdir()) == ["best-step=000020.ckpt", "last.ckpt"]
    assert again.logger.run_id == trainer.logger.run_id


def test_the_time_is_up_and_the_last_step_is_saved(runs):
    settings = {"accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False, "limit_val_batches": 0}

    def train(checkpoint=None, **limits):
        logger = MLflowLogger(experiment="toy", runs_directory=str(runs))
        assert checkpoint is None or logger.resume_from(checkpoint)
        trainer = Trainer(logger=logger, **settings, **limits)
        module = ToyModule(step_seconds=0.02)
        trainer.fit(module, ToyData(batches=500), ckpt_path=checkpoint)
        return logger, module

    logger, first = train(max_steps=400, max_time="00:00:00:01")
    last = str(logger.run_directory / "checkpoints" / "last.ckpt")
    done = len(first.seen)
    assert 0 < done < 400 and torch.load(last, weights_only=True)["global_step"] == done
    with pytest.raises(UserError, match="trainer.max_time, which counts from the run's beginning, allows no more"):
        train(last, max_steps=400, max_time="00:00:00:01")
    _, second = train(last, max_steps=done + 3, max_time="00:01:00:00")
    assert first.seen + second.seen == [[step, step] for step in range(done + 3)]
