"""A SLURM job that is queued anew goes on with its own run, exactly, and with no other job's."""

import json
import os
import signal
import time

import mlflow
import pytest
import torch
from child_processes import Command
from small_training import small_config, write_config
from text_corpus import write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.tracking import slurm
from lit_pretrain.tracking.find import list_runs

JOB = {"NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_NAME": "training", "NODELIST": "localhost"}


def variables(**changes):
    return {f"SLURM_{name}": str(value) for name, value in (JOB | changes).items()}


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """An executable of that name that writes down what it was asked."""
    path = tmp_path / "bin" / "scontrol"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked.txt\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "asked.txt"


def weights(run):
    loaded = torch.load(run.checkpoints / "last.ckpt", weights_only=True)
    return loaded["global_step"], loaded["state_dict"]


def test_a_job_goes_on_where_it_was_and_takes_no_other_jobs_state(tmp_path, scontrol, monkeypatch):
    trainer = {"max_steps": 12, "val_check_interval": 5, "log_every_n_steps": 1, "callbacks": ["text_corpus.Slow"]}
    trainer["callbacks"] = [{"class_path": "text_corpus.Slow"}]
    config = small_config(write_corpus(tmp_path / "corpus.jsonl"), trainer=trainer)
    arguments = ["fit", "--config", str(write_config(tmp_path / "small.yaml", config))]
    first = Command(*arguments, **os.environ | variables(JOB_ID=77))
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/small/*/checkpoints/last.ckpt")) and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGUSR1)
    output = "".join(first.communicate(timeout=60))
    assert first.returncode == 128 + signal.SIGUSR1, output
    assert scontrol.read_text() == "requeue 77\n" and "goes on with this run" in output
    (run,) = list_runs()
    step, _ = weights(run)
    assert 5 <= step < 12

    for name, value in variables(JOB_ID=78).items():
        monkeypatch.setenv(name, value)
    # Lightning would take this one, whoever has left it.
    torch.save({}, tmp_path / "hpc_ckpt_1.ckpt")
    assert main(arguments) == 0
    other = next(one for one in list_runs() if one.run_id != run.run_id)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert main(arguments) == 0
    assert len(list_runs()) == 2
    (done, expected), (found_step, found) = weights(other), weights(run)
    assert done == found_step == 12 and all(torch.equal(expected[name], found[name]) for name in expected)
    client = mlflow.MlflowClient(run.tracking_uri)
    record = client.get_run(run.run_id)
    assert record.info.status == "FINISHED" and record.data.tags["resumed"] == "1"
    history = [client.get_metric_history(one.run_id, "train/loss") for one in (run, other)]
    assert [{one.step: one.value for one in points} for points in history][0].keys() == set(range(1, 13))
    assert {one.step: one.value for one in history[0]} == {one.step: one.value for one in history[1]}


def test_which_run_a_job_goes_on_with(tmp_path, scontrol, monkeypatch):
    for name, value in variables(JOB_ID=9, CLUSTER_NAME="a").items():
        monkeypatch.setenv(name, value)
    command = ["fit", "--config", "a.yaml"]

    def begin(name):
        directory = tmp_path / "runs" / "default" / name
        (directory / "checkpoints").mkdir(parents=True)
        (directory / "checkpoints" / "last.ckpt").touch()
        record = {"run_id": name, "experiment": "default", "tracking_uri": "", "run_name": name}
        (directory / "run.json").write_text(json.dumps(record))
        slurm.write_job(directory, command)
        return directory

    def found(words=command):
        run = slurm.run_to_go_on_with(words)
        return run.run_name if run is not None else None

    first, second = begin("first"), begin("second")
    # The same life of the job: its second training is not its first.
    assert found() is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert found() == "first" and found(["fit", "--config", "b.yaml"]) is None
    for name, value in (("JOB_ID", "10"), ("CLUSTER_NAME", "b"), ("JOB_NAME", "other"), ("JOB_NAME", "bash")):
        with monkeypatch.context() as patch:
            patch.setenv(f"SLURM_{name}", value)
            assert found() is None
    # Taken up, and so the second is next, as a script would start them.
    slurm.write_job(first, command)
    assert found() == "second"
    slurm.write_job(second, command)
    assert found() is None
    slurm.mark_requeued(second)
    assert found() == "second"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert found() is None and slurm.job_id() == "9_2"
    (scontrol.parent / "bin" / "scontrol").write_text("#!/bin/sh\necho not allowed >&2\nexit 1\n")
    assert slurm.requeue() == "not allowed"
