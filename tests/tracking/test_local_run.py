"""Another logger than MLflow, or none: the same figures, and a run that is found and gone on with."""

import csv
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
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
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs")}} if kind == "csv" else False
    callback = {"class_path": f"{__name__}.Found"}
    config = small_config(write_corpus(tmp_path / "corpus.jsonl"), trainer=SHORT | {"logger": logger})
    config["trainer"]["callbacks"] = [callback]
    path = str(write_config(tmp_path / "small.yaml", config))
    assert main(["fit", "--config", path]) == 0
    (run,) = list_runs()
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
        assert yaml.safe_load((folder / "hparams.yaml").read_text())["data.sequence_length"] == 32
        assert (folder / "config.yaml").is_file()
    # The same run, with its own config.
    line = command_line(["fit", "--ckpt_path", "last", "--trainer.max_steps", "3"], CommandLine)
    assert line.trainer.global_step == 3 and [one.run_id for one in list_runs()] == [run.run_id]
    assert (run.directory / "config-resumed-1.yaml").is_file()
    assert torch.load(find_checkpoint(run.run_id), weights_only=True)["global_step"] == 3
    assert main(["predict", "--ckpt_path", "last"]) == 0
    assert len(list(runs.rglob("predictions.parquet"))) == 1
    assert os.listdir(tmp_path / "here") == []


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
