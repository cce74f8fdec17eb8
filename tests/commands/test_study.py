"""Studies run whole: a few tiny trainings through the real entry, resumed, failed, interrupted and told."""

import csv
import json
import math
import os
import shutil
import signal
import threading
import time

import pytest
import yaml
from mlflow.tracking import MlflowClient
from small_pictures import picture_config, write_pictures
from small_training import small_config

from lit_pretrain.__main__ import main
from lit_pretrain.errors import UserError
from lit_pretrain.studies.record import StudyRecord
from lit_pretrain.tracking.find import find_checkpoint, find_run

ENCODER = {
    "class_path": "VisionEncoder",
    "init_args": {"image_size": 16, "patch_size": 4, "transformer": {"depth": 1, "width": 32, "heads": 2}},
}
QUICK = {"measure_peak": False}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A place with pictures, a config that fine-tunes on them, and the run of a pretraining."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        directory = tmp_path_factory.mktemp("studies")
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory / "runs"))
        patch.chdir(directory)
        pictures = write_pictures(directory / "pictures.parquet", 60)
        trainer = {"max_steps": 2, "callbacks": [{"class_path": "Throughput", "init_args": QUICK}]}
        trainer["callbacks"][0]["class_path"] = "lit_pretrain.callbacks.Throughput"
        config = picture_config(pictures, [{"class_path": "Rotation"}], trainer=trainer | {"val_check_interval": 2})
        config["trainer"]["logger"]["init_args"]["run_name"] = "rotated"
        config["model"]["init_args"]["encoder"] = ENCODER
        write(directory / "pretraining.yaml", config)
        assert main(["fit", "--config", "pretraining.yaml"]) == 0
        settings = {"batch_size": 4, "test_path": str(pictures), "test_split": "train"}
        config = picture_config(pictures, [], trainer=trainer, **settings)
        config["model"] = {"class_path": "FineTuning", "init_args": {"encoder": ENCODER}}
        write(directory / "fine_tuning.yaml", config)
        yield directory


def write(path, content):
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def study(home, name, **settings):
    """A study's file."""
    defaults = {
        "fine_tuning": "fine_tuning.yaml",
        "encoders": {"scratch": None, "rotated": {"model": {"encoder": None, "init_from": "rotated"}}},
        "label_budgets": [9, 5000],
        "seeds": [0],
    }
    return write(home / f"{name}.yaml", defaults | settings)


def runs_of(name, stage="fit"):
    """MLflow's runs of a study's cells."""
    client, record = MlflowClient(find_run(name).tracking_uri), find_run(name)
    experiment = client.get_experiment_by_name("studies").experiment_id
    parent = f"tags.`mlflow.parentRunId` = '{record.run_id}' AND tags.`study.stage` = '{stage}'"
    return client, record, client.search_runs([experiment], parent)


def test_label_efficiency_is_resumed_and_told(home, capsys):
    file = study(home, "labels", target=0.0)
    assert main(["study", "label-efficiency", "--config", file, "--dry-run"]) == 0
    assert "4 of 4 cells are left; nothing has finished" in capsys.readouterr().out
    assert not list((home / "runs" / "studies").glob("labels*"))

    # 5,000 labels are more than there are: these cells fail, and the others go on.
    assert main(["study", "label-efficiency", "--config", file, "--jobs", "2", "--json", "rows.json"]) == 1
    shown = capsys.readouterr().out
    assert "rotated, labels 5000, seed 0: failed: data.label_budget is 5000" in shown
    rows = {(row["encoder"], row["label_budget"]): row for row in json.loads((home / "rows.json").read_text())}
    scratch, rotated = rows["scratch", 9], rows["rotated", 9]
    assert scratch["labels"] == 9 and scratch["finished"] == 1 and 0 <= scratch["mean"] <= 1
    assert rows["scratch", 5000]["finished"] == 0 and rows["scratch", 5000]["mean"] is None
    # With a target of 0 the first validation reaches it, and there is one after each of the 2 steps.
    assert scratch["reached_target"] == 1 and scratch["steps_to_target"] == 1
    assert rotated["labels_saved_in_words"] in ("1", "more than 1", "less than 1")

    client, record, fits = runs_of("labels")
    finished = {run.info.run_name: run for run in fits if run.info.status == "FINISHED"}
    assert set(finished) == {"scratch, labels 9, seed 0", "rotated, labels 9, seed 0"}
    (parent,) = [client.get_run(record.run_id)]
    assert parent.info.status == "FINISHED" and parent.data.tags["study"] == "label-efficiency"
    assert parent.data.metrics["test/accuracy/scratch"] == pytest.approx(scratch["mean"])
    note = parent.data.tags["mlflow.note.content"]
    assert "**Label efficiency: 2 of 4 trainings finished**" in note and "study label-efficiency --config" in note
    assert f"| scratch, labels 9, seed 0 | {scratch['mean']:.4g} |" in note and "5000, seed 0 | failed |" in note
    view = client.get_experiment(parent.info.experiment_id).tags["mlflow.sharedViewState.lit_pretrain"]
    assert all(name in view for name in ("metrics.`test/accuracy`", "tags.`study.encoder`", "best/validation/"))
    logged = {one.path for one in client.list_artifacts(record.run_id)}
    assert logged == {"labels.yaml", "cells.csv", "groups.csv", "label_efficiency.png"}
    assert (record.directory / "label_efficiency.png").read_bytes().startswith(b"\x89PNG")
    table = {row["run_id"]: row for row in csv.DictReader((record.directory / "cells.csv").open())}
    for run in finished.values():
        # What was measured on the test data stands in the cell's own run too.
        assert float(table[run.info.run_id]["test/accuracy"]) == pytest.approx(run.data.metrics["test/accuracy"])
        assert run.data.params["data_facts.training_pictures"] == "9"
        parts = {tag.value: one.dataset.name for one in run.inputs.dataset_inputs for tag in one.tags}
        assert parts["training"].endswith(":training[9]") and set(parts) == {"training", "validation"}
        (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
        assert model.tags["checkpoint.gone"] == "true"
        assert "test/accuracy" in {one.key for one in model.metrics}
        assert not (find_run(run.info.run_id).directory / "checkpoints").exists()

    # Again with one budget and a seed more: what is finished stays, and only what is new is trained.
    file = study(home, "labels", label_budgets=[9], seeds=[0, 1], encoders={"scratch": None})
    assert main(["study", "label-efficiency", "--config", file]) == 0
    shown = capsys.readouterr().out
    assert "[2/2] scratch, labels 9, seed 1" in shown and "labels 9, seed 0" not in shown
    _, _, again = runs_of("labels")
    new = {run.info.run_id for run in again} - {run.info.run_id for run in fits}
    assert len(new) == 1
    assert main(["study", "label-efficiency", "--config", file, "--report", "--json", "rows.json"]) == 0
    (row,) = json.loads((home / "rows.json").read_text())
    assert row["finished"] == 2 and row["low"] <= row["mean"] <= row["high"]
    assert len(runs_of("labels")[2]) == len(again)
    assert main(["study", "label-efficiency", "--config", file, "--dry-run"]) == 0
    assert "0 of 2 cells are left" in capsys.readouterr().out


def test_a_learning_rate_is_chosen_on_the_validation_data(home, capsys):
    settings = {"label_budgets": ["all"], "encoders": {"scratch": None}, "learning_rates": [1e38, 1e-3]}
    # 15 steps are more than the one epoch of 12 that the config would train for.
    settings |= {"overrides": {"trainer.max_epochs": 1}, "validations": 3}
    file = study(home, "rates", metric="validation/accuracy", steps=15, **settings)
    assert main(["study", "label-efficiency", "--config", file, "--json", "rows.json"]) == 0
    shown = capsys.readouterr().out
    assert "learning rate 1e+38, seed 0: diverged: The loss of" in shown
    assert "took the lowest learning rate that was tried, 0.001" in shown
    (row,) = json.loads((home / "rows.json").read_text())
    assert row["learning_rate"] == 0.001 and row["finished"] == 1 and row["labels"] == 48
    client, _, runs = runs_of("rates")
    (finished,) = [run.info.run_id for run in runs if run.info.status == "FINISHED"]
    assert [one.step for one in client.get_metric_history(finished, "validation/accuracy")] == [5, 10, 15]
    # The data tells how many labels all are; a loss that is not finite would be so again.
    assert main(["study", "label-efficiency", "--config", file]) == 0
    assert "diverged" not in capsys.readouterr().out
    assert len(runs_of("rates")[2]) == 2 and not runs_of("rates", "test")[2]


def test_a_cell_belongs_to_its_study_and_knows_its_data(home, capsys):
    """Another study reads what has finished and touches nothing; new data and spoilt outcomes are new work."""
    start = home / "start.ckpt"
    shutil.copy(find_checkpoint("rotated"), start)
    shared = {"label_budgets": [9], "steps": 2, "validations": 1}
    shared["encoders"] = {"copied": {"model": {"encoder": None, "init_from": str(start)}}}
    main_command = ["study", "label-efficiency", "--config"]
    assert main([*main_command, study(home, "keeps", keep_checkpoints=True, **shared)]) == 0
    _, _, (run,) = runs_of("keeps")
    checkpoints = sorted((find_run(run.info.run_id).directory / "checkpoints").iterdir())
    assert checkpoints
    again = study(home, "shares", **shared)
    assert main([*main_command, again]) == 0
    shown = capsys.readouterr().out
    assert "from the study keeps" in shown and runs_of("shares")[2] == []
    assert sorted((find_run(run.info.run_id).directory / "checkpoints").iterdir()) == checkpoints

    # A copy of the same bytes is the same, and so is a file that was touched.
    os.utime(start)
    assert main([*main_command, again, "--dry-run"]) == 0
    assert "0 of 1 cells are left" in capsys.readouterr().out
    (cell,) = find_run("shares").directory.glob("cells/*.json")
    outcome = json.loads(cell.read_text())
    cell.write_text(json.dumps(outcome | {"metrics": outcome["metrics"] | {"test/accuracy": math.nan}}))
    assert main([*main_command, again, "--dry-run"]) == 0
    assert "1 of 1 cells are left" in capsys.readouterr().out
    assert main([*main_command, again]) == 0 and json.loads(cell.read_text()) == outcome
    pictures = home / "pictures.parquet"
    before = pictures.read_bytes()
    try:
        write_pictures(pictures, 60, seed=5)
        assert main([*main_command, again, "--dry-run"]) == 0
    finally:
        pictures.write_bytes(before)
    assert "1 of 1 cells are left" in capsys.readouterr().out


def test_one_process_does_a_study(home):
    """The lock is taken before an earlier start is looked for, so that of two new ones one begins."""
    barrier, begun, refused = threading.Barrier(2), [], []

    def begin():
        barrier.wait()
        try:
            begun.append(StudyRecord("race", "studies", "scaling"))
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 1 and "race is still going on in another process" in refused[0]
    assert StudyRecord("race", "studies", "scaling", begin=False).directory == begun[0].directory
    begun[0].end("FINISHED")
    again = StudyRecord("race", "studies", "scaling")
    again.end("FINISHED")
    assert again.run_id == begun[0].run_id


def test_ctrl_c_stops_in_order_and_the_next_start_goes_on(home, capsys):
    settings = {"label_budgets": ["all"], "encoders": {"scratch": None}, "metric": "validation/accuracy"}
    file = study(home, "stopped", steps=600, **settings)

    def interrupt():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            logs = (home / "runs" / "studies").glob("stopped-*/cells/*.log")
            if any("FineTuning:" in log.read_text() for log in logs):
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=interrupt)
    # Pytest's processes for each core ignore Ctrl-C, which is for the one that a person sees.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread.start()
    try:
        assert main(["study", "label-efficiency", "--config", file]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    client, record, (cell,) = runs_of("stopped")
    assert cell.info.status == "KILLED" and client.get_run(record.run_id).info.status == "KILLED"
    assert "Stopping 1 training(s) after their step" in capsys.readouterr().out

    assert main(["study", "label-efficiency", "--config", file]) == 0
    client, record, (again,) = runs_of("stopped")
    assert again.info.run_id == cell.info.run_id and again.data.tags["resumed"] == "1"
    steps = [point.step for point in client.get_metric_history(cell.info.run_id, "validation/accuracy")]
    assert sorted(steps) == list(range(60, 601, 60))
    assert client.get_run(record.run_id).info.status == "FINISHED"


def test_scaling_under_an_equal_budget(home, corpus, capsys):
    config = small_config(corpus, trainer={"max_steps": 7, "callbacks": None})
    write(home / "text.yaml", config)
    content = {"pretraining": "text.yaml", "widths": [16, 32], "depths": [1], "data_sizes": [0.5]}
    content["overrides"] = {"model.encoder.transformer": {"heads": 1}}
    file = write(home / "sizes.yaml", content | {"budget": {"tokens": 3 * 8 * 32}})
    assert main(["study", "scaling", "--config", file, "--dry-run"]) == 0
    assert "2 cells, whose steps follow from the cost of one" in capsys.readouterr().out
    assert main(["study", "scaling", "--config", file, "--json", "rows.json"]) == 0
    small, large = json.loads((home / "rows.json").read_text())
    assert (small["width"], large["width"]) == (16, 32)
    assert small["steps"] == large["steps"] == 3 and small["data"] == large["data"]
    # A block of width D without its embeddings: 12 D^2 of matrices, 13 D of biases and norms.
    assert [row["transformer_parameters"] for row in (small, large)] == [12 * 256 + 13 * 16, 12 * 1024 + 13 * 32]
    assert 3.9 > small["flops"] / large["flops"] * 4 > 1 and small["mean"] > 0
    shown = capsys.readouterr().out
    assert "no power law: three numbers are fitted, which takes at least 4 different sizes; here are 2" in shown
    client, record, _ = runs_of("sizes")
    logged = {one.path for one in client.list_artifacts(record.run_id)}
    assert {"scaling.png", "points.csv", "laws.csv", "cells.csv"} <= logged


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoders": {"x": {"model.init_from": "rotted"}}}, "x: No run in"),
        (
            {"encoders": {"x": {"model.encodr": None}}},
            "There is no setting 'encodr' of model (did you mean 'encoder'?)",
        ),
        ({"encoders": {"x": {"modle.encoder": None}}}, "The override 'modle.encoder' is not below trainer"),
        ({"overrides": {"data.test_path": None, "data.test_split": None}}, "names no test data for test/accuracy"),
        ({"overrides": {"trainer.enable_checkpointing": False}}, "a study goes on from checkpoints"),
        (
            {"metric": "test/acuracy", "label_budgets": [9]},
            "(did you mean 'validation/accuracy'?): set",
        ),
        ({"fine_tuning": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
    ],
)
def test_what_cannot_run_is_said_before_anything_is_trained(home, capsys, settings, words):
    file = study(home, "wrong", **{"encoders": {"scratch": None}} | settings)
    assert main(["study", "label-efficiency", "--config", file]) == 2
    assert words in capsys.readouterr().err
    assert not list((home / "runs" / "studies").glob("wrong-*"))
    if "metric" in settings:
        assert main(["study", "label-efficiency", "--config", file, "--dry-run"]) == 2
        assert words in capsys.readouterr().err


def test_an_argument_of_the_command_is_explained(home, capsys):
    assert main(["study", "label-eficiency", "--config", "x.yaml"]) == 2
    assert main(["study", "label-efficiency", "--config", "nowhere.yaml"]) == 2
    assert main(["study", "label-efficiency", "--config", study(home, "unbegun"), "--report"]) == 2
    errors = capsys.readouterr().err
    assert "The study nowhere.yaml cannot be read" in errors and "No study unbegun was started here" in errors
