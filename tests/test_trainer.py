"""Every argument of the trainer once, in real trainings; what it finds wrong is one sentence."""

import inspect
import json

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.profilers import SimpleProfiler
from small_training import small_config, write_config
from text_corpus import write_corpus
from toy_training import ToyData, ToyModule

from lit_pretrain.__main__ import main
from lit_pretrain.cli.lightning_cli import CommandLine, command_line
from lit_pretrain.data.loading import ResumableDataLoader
from lit_pretrain.errors import UserError
from lit_pretrain.tracking.checkpoint_io import AtomicCheckpointIO
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.trainer import Trainer

# Argument -> a value of it that trains; those of the defaults below are left at theirs.
VALUES = {
    "strategy": "auto",
    "num_nodes": 1,
    "fast_dev_run": 1,
    "max_epochs": 1,
    "min_epochs": 1,
    "min_steps": 1,
    "max_time": "00:00:01:00",
    "limit_train_batches": 1,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "limit_predict_batches": 1,
    "overfit_batches": 1,
    "val_check_interval": 2,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 2,
    "enable_checkpointing": False,
    "enable_model_summary": True,
    "accumulate_grad_batches": 2,
    "gradient_clip_val": 0.5,
    "gradient_clip_algorithm": "value",
    "deterministic": "warn",
    "benchmark": True,
    "inference_mode": False,
    "use_distributed_sampler": False,
    "profiler": SimpleProfiler(),
    "detect_anomaly": True,
    "barebones": True,
    "plugins": LightningEnvironment(),
    "sync_batchnorm": True,
    "reload_dataloaders_every_n_epochs": 1,
    "enable_autolog_hparams": False,
    "model_registry": "models",
}
# What every training below has.
GIVEN = {"accelerator", "devices", "precision", "logger", "callbacks", "max_steps", "num_sanity_val_steps"}
GIVEN |= {"enable_progress_bar", "default_root_dir"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One database and one corpus for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        directory = tmp_path_factory.mktemp("trainer")
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory / "runs"))
        patch.chdir(directory)
        config = small_config(write_corpus(directory / "corpus.jsonl"), {"max_steps": 2, "val_check_interval": 1})
        config["trainer"]["callbacks"] = None
        write_config(directory / "small.yaml", config)
        yield directory


def test_the_table_has_every_argument():
    assert VALUES.keys() | GIVEN == set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}


@pytest.mark.parametrize("name", VALUES)
def test_a_training_with_the_argument(home, name):
    logger = None if name == "barebones" else MLflowLogger(experiment="toy", runs_directory=str(home / "runs"))
    settings = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "max_steps": 2, "num_sanity_val_steps": 1}
    settings |= {"enable_progress_bar": False, "logger": logger, "default_root_dir": home / "root"}
    trainer = Trainer(**settings | {name: VALUES[name]})
    trainer.fit(ToyModule(), ToyData(batches=4))
    assert trainer.state.finished and trainer.global_step >= 1
    # Nothing beside the runs.
    assert {path.name for path in home.iterdir()} <= {"runs", "corpus.jsonl", "small.yaml", "root", "rows.json"}


@pytest.mark.parametrize("logger", [MLflowLogger, CSVLogger, None])
def test_a_profile_lies_with_the_run(home, logger):
    """A config that names no place has an empty one."""
    made = False if logger is None else logger("") if logger is CSVLogger else logger("toy")
    settings = {"accelerator": "cpu", "devices": 1, "max_steps": 2, "enable_progress_bar": False, "logger": made}
    Trainer(**settings, profiler=SimpleProfiler(filename="profile")).fit(ToyModule(), ToyData(batches=4))
    (written,) = home.rglob("fit-profile.txt")
    assert (written.parent / "run.json").is_file()
    written.unlink()


def test_checkpoints_stay_atomic_beside_and_within_other_plugins():
    for given in (None, LightningEnvironment(), [LightningEnvironment()]):
        assert isinstance(Trainer(logger=False, plugins=given).strategy.checkpoint_io, AtomicCheckpointIO)
    writer = Trainer(logger=False, plugins=AsyncCheckpointIO()).strategy.checkpoint_io
    assert isinstance(writer, AsyncCheckpointIO) and isinstance(writer.checkpoint_io, AtomicCheckpointIO)


def fit(*arguments):
    return main(["fit", "--config", "small.yaml", *arguments])


def test_few_batches_are_the_same_in_every_epoch(home, monkeypatch):
    """Lightning would give the loader a sampler of its own, and every epoch an order of its own."""
    seen, plain = [], ResumableDataLoader.__iter__

    def noting(loader):
        for batch in plain(loader):
            if loader.batch_sampler.shuffle:
                seen.append(json.dumps(batch["input_ids"].tolist()))
            yield batch

    monkeypatch.setattr(ResumableDataLoader, "__iter__", noting)
    assert fit("--trainer.overfit_batches", "2", "--trainer.max_steps", "6") == 0
    assert len(seen) >= 6 and set(seen) == set(seen[:2]) and len(set(seen)) == 2


def test_the_learning_rate_finder_sets_the_rate_and_plugins_are_added(home):
    finder = ["--trainer.callbacks+", "lightning.pytorch.callbacks.LearningRateFinder"]
    finder += ["--trainer.callbacks.num_training_steps", "30"]
    done = command_line(["fit", "--config", "small.yaml", *finder], CommandLine)
    rates = [group["lr"] for group in done.trainer.optimizers[0].param_groups]
    suggested = done.model.learning_rate
    assert suggested != 1e-3 and max(rates) <= suggested
    assert fit("--trainer.plugins+", "lightning.pytorch.plugins.io.AsyncCheckpointIO") == 0


def test_weights_are_averaged_by_lightnings_callback_and_constants_are_not(home):
    ngrams = ["--model.encoder.ngrams", "2", "--model.encoder.ngram_rows", "50"]
    plugin = {"class_path": "lightning.pytorch.plugins.MixedPrecision", "init_args": {"precision": "bf16-mixed"}}
    plugin["init_args"]["device"] = "cpu"
    more = ["--trainer.plugins", json.dumps(plugin), "--trainer.precision", "auto", "--trainer.max_steps", "4"]
    averaged = ["--trainer.callbacks+", "lightning.pytorch.callbacks.EMAWeightAveraging"]
    done = command_line(["fit", "--config", "small.yaml", *ngrams, *more, *averaged], CommandLine)
    assert done.trainer.precision == "bf16-mixed"
    saved = torch.load(done.trainer.checkpoint_callback.last_model_path, weights_only=True)
    whole = {key: value for key, value in saved["current_model_state"].items() if not value.is_floating_point()}
    assert any(key.endswith(".keys") for key in whole)
    for key, value in whole.items():
        assert torch.equal(saved["state_dict"][key], value), key
    assert any(not torch.equal(saved["state_dict"][key], value) for key, value in saved["current_model_state"].items())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("callbacks+ StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.1", "take WeightAveraging or EMAWeight"),
        ("callbacks+ DeviceStatsMonitor", "A package is missing (`DeviceStatsMonitor` cannot log CPU stats as"),
        ("accumulate_grad_batches 0", "trainer.accumulate_grad_batches is 0: give at least 1"),
        ("log_every_n_steps 0", "trainer.log_every_n_steps is 0: give at least 1"),
        ("callbacks+ EarlyStopping --trainer.callbacks.monitor validation/los", "did you mean 'validation/loss'?"),
        ("callbacks+ ModelCheckpoint --trainer.callbacks.monitor validation/los", "did you mean 'validation/loss'?"),
        (
            "num_sanity_val_steps 0 --trainer.callbacks+ EarlyStopping --trainer.callbacks.monitor validation/los",
            "do not fit this training (Early stopping conditioned on metric",
        ),
        ("val_check_interval 99999 --trainer.check_val_every_n_epoch 1", "`val_check_interval` (99999) must be less"),
        ("logger lightning.pytorch.loggers.CometLogger", "CometLogger cannot be made ("),
        ("strategy nonsense", "trainer.strategy is nonsense, and there is auto, ddp"),
        ("accelerator gpu --model.schedule null", "model.schedule is null, and holds settings of TextPretraining"),
        ("max_steps 2 --model.optimizer null --print_config", "model.optimizer is null"),
        (
            "max_steps 2 --data.split null",
            "data.split is null, and DocumentDataModule needs a value of it: leave it out",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(home, capsys, monkeypatch, arguments, sentence):
    monkeypatch.setattr("lightning.pytorch.callbacks.device_stats_monitor._PSUTIL_AVAILABLE", False)
    assert fit(*f"--trainer.{arguments}".split()) == 2
    said = capsys.readouterr().err
    assert sentence in said.strip().splitlines()[-1] and "Traceback" not in said


def test_a_wrong_number_is_refused_in_python_too():
    with pytest.raises(UserError, match="accumulate_grad_batches is 0"):
        Trainer(accumulate_grad_batches=0)
