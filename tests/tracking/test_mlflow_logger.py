"""The logger on a real SQLite database: names, places, resuming, parameters, statuses."""

import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import seed_everything
from PIL import Image
from toy_training import ToyData, ToyModule, make_trainer

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.store import resolve_tracking_uri


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A runs directory whose database is made once for this file."""
    return tmp_path_factory.mktemp("runs") / "deep er"


def new_logger(runs, **settings):
    return MLflowLogger(**({"experiment": "logger", "runs_directory": str(runs)} | settings))


def test_nothing_is_made_before_it_is_needed(tmp_path):
    logger = MLflowLogger(runs_directory=str(tmp_path / "runs"))
    assert logger.save_dir == str(tmp_path / "runs")
    logger.finalize("failed")
    assert not (tmp_path / "runs").exists()


def test_places_of_a_run(runs, tmp_path, monkeypatch):
    logger = new_logger(runs, run_name="a name / with a slash")
    logger.log_text("hello", "notes/hello.txt")
    assert logger.flush()
    client = logger.experiment
    monkeypatch.chdir(tmp_path)  # wherever the person goes next, the artifacts are found
    run = client.get_run(logger.run_id)
    assert Path(client.download_artifacts(logger.run_id, "notes/hello.txt")).read_text() == "hello"
    assert run.info.artifact_uri.startswith((runs / "artifacts" / "logger").as_uri())
    assert Path(logger.save_dir, logger.name, logger.version) == logger.run_directory
    assert logger.run_directory == runs / "logger" / f"a-name-with-a-slash-{logger.run_id[:8]}"
    assert json.loads((logger.run_directory / "run.json").read_text()) == {
        "run_id": logger.run_id,
        "experiment": "logger",
        "tracking_uri": f"sqlite:///{runs / 'mlflow.db'}",
        "run_name": "a name / with a slash",
    }
    assert not list(tmp_path.iterdir())
    logger.finalize("success")
    assert client.get_run(logger.run_id).info.status == "FINISHED"


def test_names_do_not_follow_the_seed_and_do_not_move_it(runs):
    names = set()
    for _ in range(2):
        seed_everything(1, verbose=False)
        state = random.getstate()
        logger = new_logger(runs)
        logger.suggest_name("quickstart")
        names.add(logger.version)
        assert logger.run_name.startswith("quickstart-20")
        assert random.getstate() == state
        logger.finalize("success")
    assert len(names) == 2


def test_metrics_arrive_with_their_steps(runs):
    trainer = make_trainer(runs, max_steps=25, log_every_n_steps=5)
    module = ToyModule()
    trainer.fit(module, ToyData())
    client, run_id = trainer.logger.experiment, trainer.logger.run_id
    assert [one.step for one in client.get_metric_history(run_id, "train/loss")] == [5, 10, 15, 20, 25]
    assert [one.step for one in client.get_metric_history(run_id, "validation/loss")] == [20]
    trainer.logger.log_metrics({"odd name (a+b)": 1.0, "nan": math.nan, "word": "dropped"}, step=3)
    trainer.logger.flush()
    metrics = client.get_run(run_id).data.metrics
    assert metrics["odd name -a-b-"] == 1.0
    assert math.isnan(metrics["nan"])
    assert "word" not in metrics


def test_steps_that_are_done_again_are_logged_once(runs):
    logger = new_logger(runs)
    for step in (5, 10, 15):
        rate = {"throughput/tokens_per_second": 100 + step}
        logger.log_metrics({"train/loss": 1 / step, "nan": math.nan} | rate, step=step)
    # As a training and its validation both log it.
    logger.log_metrics({"nan": math.nan}, step=15)
    logger.log_picture(Image.new("RGB", (8, 8), "red"), "panels/one", 15)
    logger.finalize("failed")
    resumed = new_logger(runs)
    assert resumed.resume_from(logger.run_directory / "checkpoints" / "last.ckpt")
    for step, loss in ((10, 1 / 10), (15, 0.5), (20, 1 / 20)):
        resumed.log_metrics({"train/loss": loss, "nan": math.nan, "throughput/tokens_per_second": step}, step=step)
        resumed.log_picture(Image.new("RGB", (8, 8), "blue"), "panels/one", step)
        resumed.flush()
    client, run_id = resumed.experiment, resumed.run_id
    pictures = [Path(file.path).name.split("+") for file in client.list_artifacts(run_id, "images")]
    assert sorted(name[2] for name in pictures if len(name) == 6) == ["10", "15", "20"]

    def history(name):
        return sorted((one.step, one.value) for one in client.get_metric_history(run_id, name))

    # What comes out otherwise, as with another learning rate, is news; what a clock says otherwise is not.
    assert history("train/loss") == [(5, 1 / 5), (10, 1 / 10), (15, 1 / 15), (15, 0.5), (20, 1 / 20)]
    assert [step for step, _ in history("nan")] == [5, 10, 15, 20]
    assert history("throughput/tokens_per_second") == [(5, 105), (10, 110), (15, 115), (20, 20)]
    resumed.mark("FINISHED")
    resumed.finalize("success")


def test_parameters_are_whole_and_may_change_on_resume(runs):
    logger = new_logger(runs)
    logger.log_hyperparams({"long": "x" * 5990, "longer": "y" * 7000, "model": {"width": 8}, "list": [1, 2]})
    logger.log_hyperparams({f"many.{index}": index for index in range(250)})
    logger.finalize("failed")
    client, run_id = logger.experiment, logger.run_id
    parameters = client.get_run(run_id).data.params
    assert parameters["long"] == "x" * 5990
    assert len(parameters["longer"]) == 6000 and parameters["longer"].endswith("config.yaml)")
    assert parameters["model.width"] == "8" and parameters["list"] == "[1, 2]" and parameters["many.249"] == "249"
    assert client.get_run(run_id).info.status == "FAILED"

    resumed = new_logger(runs)
    (logger.run_directory / "checkpoints").mkdir()
    assert resumed.resume_from(logger.run_directory / "checkpoints" / "last.ckpt")
    with pytest.warns(UserWarning, match="differ from when the run began: model.width;"):
        resumed.log_hyperparams({"model": {"width": 16, "depth": 2}, "list": [1, 2]})
    resumed.flush()
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert (run.data.params["model.width"], run.data.params["model.depth"]) == ("8", "2")
    assert (run.data.tags["resumed.model.width"], run.data.tags["resumed"]) == ("16", "1")
    assert resumed.run_directory == logger.run_directory
    resumed.mark("KILLED")
    resumed.finalize("failed")
    assert client.get_run(run_id).info.status == "KILLED"


def test_checkpoint_elsewhere_starts_a_new_run(runs, tmp_path):
    assert not new_logger(runs).resume_from(tmp_path / "some.ckpt")


def test_run_that_is_not_in_the_store(runs):
    with pytest.raises(UserError, match="The run 0123 is not in sqlite"):
        _ = new_logger(runs, run_id="0123").experiment


def test_run_that_another_process_writes_is_not_resumed(runs):
    logger = new_logger(runs)
    client = logger.experiment
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    from lit_pretrain.tracking.processes import process_identity

    client.set_tag(logger.run_id, "process.identity", process_identity(other.pid))
    with pytest.raises(UserError, match=f"still going on in process {other.pid}"):
        _ = new_logger(runs, run_id=logger.run_id).experiment
    other.communicate(b"\n")
    assert new_logger(runs, run_id=logger.run_id).run_id == logger.run_id


def test_deleted_experiment_and_run_are_restored(runs):
    logger = new_logger(runs, experiment="deleted")
    client = logger.experiment
    logger.finalize("success")
    client.delete_experiment(logger.experiment_id)
    with pytest.warns(UserWarning, match="'deleted' had been deleted; it was restored"):
        assert new_logger(runs, experiment="deleted").experiment_id == logger.experiment_id
    client.delete_run(logger.run_id)
    with pytest.warns(UserWarning, match="had been deleted; it was restored to be continued"):
        assert new_logger(runs, run_id=logger.run_id).run_id == logger.run_id


def test_table_is_one_that_mlflow_reads(runs, monkeypatch):
    logger = new_logger(runs)
    logger.log_table([{"a": 1, "b": "ß"}, {"a": 2, "c": None}], "examples/one.json")
    logger.finalize("success")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", logger.tracking_uri)  # part of load_table asks the default store
    table = logger.experiment.load_table(logger.experiment_id, "examples/one.json", [logger.run_id])
    assert table["a"].tolist() == [1, 2]
    assert table["b"].tolist()[0] == "ß"


def test_broken_database_is_one_sentence(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is not a database " * 100)
    begin = time.monotonic()
    with pytest.raises(UserError, match="mlflow.db cannot be used"):
        _ = new_logger(tmp_path).experiment
    # MLflow itself tries for 100 seconds.
    assert time.monotonic() - begin < 30


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_tracking_uri("sqlite:///here.db", tmp_path) == f"sqlite:///{tmp_path}/here.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert resolve_tracking_uri(None, tmp_path) == "http://somewhere:5000"
    for directory in ("file:./mlruns", "mlruns"):
        with pytest.raises(UserError, match=f"use sqlite:///{tmp_path}/mlruns/mlflow.db"):
            resolve_tracking_uri(directory, tmp_path)
    # As the config of a run keeps it.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/db")
    assert resolve_tracking_uri("postgresql://host/db", tmp_path) == "postgresql://me:secret@host/db"
    assert resolve_tracking_uri("postgresql://other/db", tmp_path) == "postgresql://other/db"
    with pytest.raises(UserError, match="experiment's name is empty"):
        MLflowLogger(experiment=" ")
