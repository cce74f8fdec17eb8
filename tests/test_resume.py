"""A training that is killed and gone on with equals one that never was, bit for bit, through the real entry point."""

import os
import signal
import time

import mlflow
import pytest
import torch
from small_training import run, small_config, start, write_config
from text_corpus import write_corpus

SLOWLY = ("--trainer.callbacks+", "text_corpus.Slow")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


def weights(directory):
    """Everything a checkpoint says of model and optimiser."""
    (path,) = directory.glob("small/*/checkpoints/last.ckpt")
    loaded = torch.load(path, weights_only=True)
    (optimizer,) = loaded["optimizer_states"]
    states = {f"{k}/{name}": value for k, state in optimizer["state"].items() for name, value in state.items()}
    return loaded["global_step"], loaded["state_dict"] | states


def saved_step(directory):
    """The step of the last checkpoint, if there is one by now."""
    paths = list(directory.glob("small/*/checkpoints/last.ckpt"))
    return torch.load(paths[0], weights_only=True, mmap=True)["global_step"] if paths else 0


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_mid_epoch_and_resumed(corpus, tmp_path, workers):
    # Epochs of about 25 steps; a save every 10, so the last one before the kill lies within an epoch.
    settings = small_config(corpus, workers=workers, trainer={"max_steps": 60})
    config = str(write_config(tmp_path / "small.yaml", settings))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    done = run("fit", "--config", config, runs=straight)
    assert done.returncode == 0, done.stderr

    # Slow enough to be caught in the middle.
    process = start("fit", "--config", config, *SLOWLY, runs=killed, PYTHONPATH="tests")
    deadline = time.monotonic() + 200
    while saved_step(killed) < 30 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and 30 <= saved_step(killed) < 60

    resumed = run("fit", "--config", config, "--ckpt_path", "last", runs=killed)
    assert resumed.returncode == 0, resumed.stderr
    (step, expected), (other_step, found) = weights(straight), weights(killed)
    assert step == other_step == 60 and expected.keys() == found.keys()
    different = [
        name
        for name, value in expected.items()
        if not torch.equal(torch.as_tensor(value), torch.as_tensor(found[name]))
    ]
    assert different == []

    # It is one run, with the metrics of both parts, each step once.
    client = mlflow.MlflowClient(f"sqlite:///{killed}/mlflow.db")
    (record,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert record.info.status == "FINISHED"
    history = client.get_metric_history(record.info.run_id, "validation/loss")
    values = {one.step: one.value for one in history}
    assert sorted(values) == [10, 20, 30, 40, 50, 60]
    other = mlflow.MlflowClient(f"sqlite:///{straight}/mlflow.db")
    (record,) = other.search_runs([other.get_experiment_by_name("small").experiment_id])
    assert values == {one.step: one.value for one in other.get_metric_history(record.info.run_id, "validation/loss")}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_a_killed_run(corpus, tmp_path, number, code):
    config = str(write_config(tmp_path / "small.yaml", small_config(corpus, trainer={"max_steps": 2000})))
    process = start("fit", "--config", config, *SLOWLY, runs=tmp_path, PYTHONPATH="tests")
    deadline = time.monotonic() + 200
    while saved_step(tmp_path) < 10 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors and "--ckpt_path" in errors + output
    step = saved_step(tmp_path)
    assert 10 <= step < 2000
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (record,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert record.info.status == "KILLED"
    resumed = run("fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", str(step + 3), runs=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert client.get_run(record.info.run_id).info.status == "FINISHED" and saved_step(tmp_path) == step + 3
