"""Sweeps run whole: a few tiny trainings through the real entry, one killed and taken up by another process."""

import copy
import csv
import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path

import optuna
import pytest
import yaml
from mlflow.tracking import MlflowClient
from small_training import small_config, start, write_config
from text_corpus import write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.errors import UserError
from lit_pretrain.studies.record import StudyRecord
from lit_pretrain.studies.settings import read_settings
from lit_pretrain.studies.sweep import Sweep
from lit_pretrain.studies.sweep_runner import SweepRunner
from lit_pretrain.studies.sweep_settings import SweepSettings
from lit_pretrain.tracking.find import find_run

LOSS = "validation/masked_language_modeling/loss"
RATE = "model.optimizer.learning_rate"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A place with texts and a config that trains on them for a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        directory = tmp_path_factory.mktemp("sweeps")
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory / "runs"))
        patch.chdir(directory)
        config = small_config(write_corpus(directory / "corpus.jsonl"), trainer={"max_steps": 6})
        config["model"]["init_args"]["objectives"].pop()
        write_config(directory / "fit.yaml", config)
        yield directory


def sweep(home, name, **settings):
    """A sweep's file."""
    content = {"config": "fit.yaml", "metric": LOSS, "validations": 3} | settings
    (home / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return f"{name}.yaml"


def trials_of(name):
    """Optuna's trials of a sweep, its record, and MLflow's runs of the trials by number."""
    record = find_run(name)
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{record.directory}/optuna.db")
    client = MlflowClient(record.tracking_uri)
    experiment = client.get_experiment_by_name("sweeps").experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{record.run_id}'")
    return study.trials, record, {int(run.data.tags["study.trial"]): run for run in runs}, client


def test_a_sweep_finds_the_best_and_goes_on_past_failures(home, capsys):
    # 1e38 gives a loss that is no number, and 1e-6 is worse at its first validation than what was learned with 1e-2.
    file = sweep(
        home,
        "first",
        trials=9,
        parameters={RATE: ["1e-2", "1e-6", 1e38]},
        sampler="BruteForceSampler",
        seed=3,
        pruner={"class_path": "MedianPruner", "init_args": {"n_startup_trials": 1}},
    )
    assert main(["sweep", "--config", file, "--json", "trials.json"]) == 0
    shown = capsys.readouterr().out
    # There are no more than three values, whatever number of trials.
    assert "3 trials: 1 finished, 1 pruned, 1 failed; pruning saved 4 steps." in shown
    assert "failed: The loss of" in shown and "There are no figures until two trials" in shown
    rows = {row[RATE]: row for row in json.loads((home / "trials.json").read_text())}
    assert {rate: row["state"] for rate, row in rows.items()} == {0.01: "complete", 1e-6: "pruned", 1e38: "fail"}
    assert rows[1e-6]["steps"] == 2 and rows[0.01]["steps"] == 6

    trials, record, runs, client = trials_of("first")
    best = rows[0.01]["trial"]
    assert list(trials[best].intermediate_values) == [2, 4, 6] and trials[best].value == rows[0.01][LOSS]
    assert runs[best].data.tags["study.trial_state"] == "complete"
    assert runs[best].data.metrics[LOSS] == trials[best].value
    parent = client.get_run(record.run_id)
    assert parent.info.status == "FINISHED" and "1 of 3 trainings finished" in parent.data.tags["mlflow.note.content"]
    assert {one.path for one in client.list_artifacts(record.run_id)} == {file, "best.yaml", "trials.csv"}
    assert len(list(csv.DictReader((record.directory / "trials.csv").open()))) == 3

    # The best config is one that `fit` takes as it is, and it comes to the same.
    assert f"fit --config runs/{record.directory.relative_to(home / 'runs')}/best.yaml" in shown
    assert main(["fit", "--config", str(record.directory / "best.yaml")]) == 0
    again = client.get_run(find_run(newest(home / "runs" / "small")).run_id)
    assert again.data.metrics[LOSS] == trials[best].value and "mlflow.parentRunId" not in again.data.tags

    capsys.readouterr()
    assert main(["sweep", "--config", file, "--dry-run"]) == 0
    assert "6 of 9 trials are left." in capsys.readouterr().out


def newest(directory):
    return str(max(directory.iterdir(), key=lambda path: path.stat().st_mtime))


def test_a_value_that_cannot_be_used_is_said_before_the_first_trial(home, capsys):
    values = {RATE: [0.1], "model.objectives.0.probability": [0.2, 1.5]}
    assert main(["sweep", "--config", sweep(home, "wrong", trials=1, parameters=values)]) == 2
    said = capsys.readouterr().err
    assert "'model.objectives.0.probability' cannot be 1.5: " in said and "(correct wrong.yaml, line 8)" in said
    # So is a metric that no validation logs, whose direction is given.
    settings = {"metric": "validation/los", "direction": "minimize", "parameters": {RATE: [0.1]}, "trials": 1}
    for option in ([], ["--dry-run"]):
        assert main(["sweep", "--config", sweep(home, "wrong", **settings), *option]) == 2
        assert "does not log validation/los (did you mean 'validation/loss'?)" in capsys.readouterr().err
    assert not list((home / "runs").glob("sweeps/wrong-*"))


def test_of_two_starts_with_other_settings_the_first_trial_decides(home):
    file = sweep(home, "either", parameters={RATE: [0.1, 0.2]}, trials=1)
    ours = Sweep(read_settings(file, SweepSettings), file)
    theirs = copy.copy(ours)
    theirs.settings = dataclasses.replace(ours.settings, seed=5)
    record = StudyRecord("either", "sweeps", "sweep", shared=True)
    first, second = (SweepRunner(one, record, 1, print) for one in (ours, theirs))
    # The second has replaced the first's study, which had no trial.
    assert first._next().labels["trial"] == 0
    with pytest.raises(UserError, match="begun with another seed"):
        second._next()
    record.end("KILLED")


def test_two_processes_share_a_sweep_and_one_takes_up_what_the_other_was_killed_at(home, capsys):
    """The survivor ends its own trial, then goes on with the dead one's from its checkpoint."""
    values = {RATE: {"low": 1e-4, "high": 1e-2, "log": True}}
    values["model.objectives.0.probability"] = {"low": 0.1, "high": 0.4}
    steps = {"trainer.max_steps": 200}
    file = sweep(home, "shared", trials=2, overrides=steps, validations=5, parameters=values, pruner=None)
    other = start("sweep", "--config", file, runs=home / "runs")

    def wait_for(pattern):
        deadline = time.monotonic() + 180
        while not any((home / "runs" / "sweeps").glob(pattern)):
            assert time.monotonic() < deadline and other.poll() is None, pattern
            time.sleep(0.02)

    def signal_all(number):
        for pid in reversed(family(other.pid)):
            os.kill(pid, number)

    def kill():
        wait_for("trial-1-*/run.json")
        signal_all(signal.SIGKILL)

    wait_for("trial-0-*/checkpoints/last.ckpt")
    # It lives, and comes to nothing more.
    signal_all(signal.SIGSTOP)
    thread = threading.Thread(target=kill)
    thread.start()
    assert main(["sweep", "--config", file]) == 0
    thread.join()
    other.wait()
    assert other.returncode == -signal.SIGKILL
    shown = capsys.readouterr().out
    assert "trial 0, " in shown and "its process was ended; it goes on." in shown
    trials, record, runs, client = trials_of("shared")
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    # Each is one run, the first of them resumed, and every validation was reported once.
    assert set(runs) == {0, 1} and [runs[number].data.tags.get("resumed") for number in (0, 1)] == ["1", None]
    for number, trial in enumerate(trials):
        assert list(trial.intermediate_values) == list(range(40, 201, 40))
        assert trial.value == runs[number].data.metrics[LOSS] == trial.intermediate_values[200]
    assert client.get_run(record.run_id).info.status == "FINISHED"
    pictures = {"history.png", "importance.png", "slices.png", "contours.png"}
    assert pictures < {one.path for one in client.list_artifacts(record.run_id)}
    assert all((record.directory / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def family(pid):
    """A process and all that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]
