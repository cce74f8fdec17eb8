"""Another logger than MLflow, or none: the same figures, and a run that is found and gone on with."""

import csv
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from small_pictures import picture_config, write_pictures
from small_training import small_config, write_config
from text_corpus import write_corpus
from toy_training import ToyData, ToyModule

from lit_pretrain.__main__ import main
from lit_pretrain.callbacks.measurement import Measurement
from lit_pretrain.cli.lightning_cli import CommandLine, command_line
from lit_pretrain.errors import UserError
from lit_pretrain.tracking.find import find_checkpoint, list_runs
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.trainer import Trainer

SHORT = {"max_steps": 2, "val_check_interval": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1}


class Found(Measurement):
    """Finds a figure after every validation."""

    def __init__(self):
        super().__init__(1)

    def figures(self, trainer, pl_module):
        return {"probe/found": 0.5}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "runs"


@pytest.mark.parametrize("kind", ["csv", "none"])
def test_figures_config_and_going_on_without_mlflow(runs, tmp_path, kind):
    # Beneath the working directory, as a person names it.
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "../logs"}} if kind == "csv" else False
    callback = {"class_path": f"{__name__}.Found"}
    config = small_config(write_corpus(tmp_path / "corpus.jsonl"), trainer=SHORT | {"logger": logger})
    config["trainer"]["callbacks"] = [callback]
    path = str(write_config(tmp_path / "small.yaml", config))
    assert main(["fit", "--config", path]) == 0
    (run,) = list_runs()
    # Where nothing is logged, nothing to look at is either.
    assert (run.directory / "examples" / "masked_language_modeling.json").is_file() == (kind == "csv")
    assert find_checkpoint("last", "default") == find_checkpoint(run.run_id)
    assert find_checkpoint("last:best").name == "best-step=000002.ckpt"
    saved = yaml.safe_load((run.directory / "config.yaml").read_text())
    assert saved["data"]["init_args"]["sequence_length"] == 32
    if kind == "csv":
        folder = tmp_path / "logs" / "lightning_logs" / "version_0"
        with (folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        found = {name: row[name] for row in rows for name in row if row[name]}
        assert {"probe/found", "best/validation/loss", "validation/loss", "train/loss"} <= found.keys()
        assert len({row["step"] for row in rows if row["best/validation/loss"] or row["validation/loss"]}) == 1
        settings = yaml.safe_load((folder / "hparams.yaml").read_text())
        assert (
            settings["data.sequence_length"] == 32 and settings["data_facts.documents"] and settings["versions.torch"]
        )
        assert (folder / "config.yaml").is_file()
    # The same run, with its own config.
    line = command_line(["fit", "--ckpt_path", "last", "--trainer.max_steps", "3"], CommandLine)
    assert line.trainer.global_step == 3 and [one.run_id for one in list_runs()] == [run.run_id]
    assert (run.directory / "config-resumed-1.yaml").is_file()
    assert torch.load(find_checkpoint(run.run_id), weights_only=True)["global_step"] == 3
    if kind == "none":
        assert main(["predict", "--ckpt_path", "last"]) == 0
        assert len(list(runs.rglob("predictions.parquet"))) == 1
    assert os.listdir(tmp_path / "here") == []


@pytest.mark.parametrize("kind", ["CSVLogger", "TensorBoardLogger", "WandbLogger"])
def test_a_logger_without_a_place_writes_into_the_run(runs, tmp_path, monkeypatch, kind):
    if kind == "WandbLogger":
        wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
        monkeypatch.setenv("WANDB_SILENT", "true")
    objectives = [{"class_path": "Rotation"}]
    logger = [{"class_path": kind, "init_args": {"offline": True} if kind == "WandbLogger" else {}}]
    pictures = write_pictures(tmp_path / "pictures.parquet", 40)
    config = picture_config(pictures, objectives, trainer=SHORT | {"max_steps": 2, "logger": logger})
    assert main(["fit", "--config", str(write_config(tmp_path / "small.yaml", config))]) == 0
    (run,) = list_runs()
    assert (run.directory / "panels" / "rotation.png").is_file()
    if kind == "WandbLogger":
        wandb.finish()
    # Another session must not write over the first one's figures.
    line = command_line(["fit", "--ckpt_path", "last", "--trainer.max_steps", "4"], CommandLine)
    assert line.trainer.global_step == 4 and len(list_runs()) == 1
    assert os.listdir(tmp_path / "here") == []
    if kind == "WandbLogger":
        wandb.finish()
        # One run of theirs, by the same name and id.
        assert line.trainer.logger.version == run.run_id and line.trainer.logger.name
        media = list(run.directory.glob("wandb/offline-run-*/files/media/images/panels/*.png"))
        assert len(media) == 2 and all(run.run_id in str(path) for path in media)
        return
    folders = [run.directory / "lightning_logs" / f"version_{number}" for number in range(2)]
    if kind == "CSVLogger":
        tables = [list(csv.DictReader((folder / "metrics.csv").open())) for folder in folders]
        assert [max(int(row["step"]) for row in rows if row["validation/loss"]) for rows in tables] == [1, 3]
        return
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for folder, step in zip(folders, (2, 4), strict=True):
        events = event_accumulator.EventAccumulator(str(folder)).Reload()
        # Lightning's figures count steps from 0.
        assert [event.step for event in events.Scalars("validation/loss")] == [step - 1]
        assert [event.step for event in events.Images("panels/rotation")] == [step]
    settings = yaml.safe_load((folders[0] / "hparams.yaml").read_text())
    assert settings["model.encoder.patch_size"] == 4 and settings["data_facts.stored_size"] == 16


def test_a_directory_carried_to_another_place_goes_on_there(runs, tmp_path, monkeypatch):
    def fit(steps, checkpoint=None):
        settings = {"accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False}
        logger = MLflowLogger(experiment="toy")
        assert checkpoint is None or logger.resume_from(checkpoint)
        trainer = Trainer(max_steps=steps, num_sanity_val_steps=0, log_every_n_steps=1, logger=logger, **settings)
        module = ToyModule()
        trainer.fit(module, ToyData(), ckpt_path=checkpoint)
        return logger, module

    first, one = fit(25)
    carried = Path(shutil.copytree(first.run_directory, tmp_path / "elsewhere" / "toy" / "carried"))
    last = str(carried / "checkpoints" / "last.ckpt")
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "elsewhere"))
    # The database that has it is still there: whether it is to go on in another is the person's to say.
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI or the runs directory .* or remove its run.json"):
        fit(30, last)
    shutil.rmtree(runs)
    with pytest.warns(UserWarning, match="it goes on as a new run there"):
        second, two = fit(30, last)
    assert [step for step, _ in one.seen + two.seen] == list(range(30))
    run = second.experiment.get_run(second.run_id)
    assert second.run_directory == carried and run.data.tags["continues"] == first.run_id != second.run_id
    assert find_checkpoint(second.run_id) == Path(last)
