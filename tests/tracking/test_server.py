"""A real tracking server that is not there, goes away in the middle of a training, and comes back."""

import functools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings

import pytest
from lightning.pytorch.callbacks import Callback
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from toy_training import ToyData, ToyModule, make_trainer

from lit_pretrain.commands.ui import check_port, server_command
from lit_pretrain.errors import UserError
from lit_pretrain.tracking import mlflow_logger
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.writer import Writer, read_journal


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(directory, port):
    """Start the server that the `ui` command would become; return once it answers."""
    # With all tables, whose seventy migrations it would run else.
    SqlAlchemyStore(f"sqlite:///{directory / 'server.db'}", str(directory / "artifacts"))
    command = server_command(directory / "server.db", directory, "127.0.0.1", port)
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (directory / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return process
        except OSError:
            time.sleep(0.1)
    pytest.fail((directory / "server.log").read_text())


def stop_server(process):
    # The server has workers of its own, which live in its session.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Outages(Callback):
    """Ends the server at step 10, starts it again at step 20, and ends it for good at step 25."""

    def __init__(self, directory, port):
        self.directory, self.port = directory, port
        self.process, self.seconds = start_server(directory, port), 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in (10, 25):
            # What was logged so far has arrived; what follows will not.
            assert trainer.logger.flush()
            stop_server(self.process)
        if trainer.global_step == 20:
            started, unsent = time.monotonic(), trainer.logger.run_directory / "unsent.jsonl"
            wait_until(unsent.exists)
            self.process = start_server(self.directory, self.port)
            # It is asked again by itself.
            wait_until(lambda: not unsent.exists())
            history = trainer.logger.experiment.get_metric_history(trainer.logger.run_id, "train/loss")
            assert {metric.step for metric in history} >= set(range(1, 20))
            self.seconds = time.monotonic() - started


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_server_that_is_not_there_is_one_sentence_within_seconds(tmp_path):
    logger = MLflowLogger(tracking_uri=f"http://127.0.0.1:{free_port()}", runs_directory=str(tmp_path))
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be used .*Connection refused.*MLFLOW_TRACKING_URI"):
        _ = logger.experiment
    assert time.monotonic() - started < 10


def test_server_that_answers_nonsense_is_one_sentence(tmp_path):
    program = "import http.server; http.server.HTTPServer(('127.0.0.1', %d), http.server.BaseHTTPRequestHandler)"
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", f"{program % port}.serve_forever()"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        with pytest.raises(UserError, match="cannot be used"):
            _ = MLflowLogger(tracking_uri=f"http://127.0.0.1:{port}", runs_directory=str(tmp_path)).experiment
        with pytest.raises(UserError, match=f"Port {port} .* such as --port {port + 1}"):
            check_port("127.0.0.1", port)
    finally:
        process.kill()
        process.wait()


def test_server_that_goes_away_costs_a_warning_and_loses_nothing(tmp_path, monkeypatch):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(mlflow_logger, "Writer", functools.partial(Writer, interval=0.05, retry_after=0.5))
    outages = Outages(tmp_path, port)
    try:
        logger = MLflowLogger("toy", tracking_uri=address, runs_directory=str(tmp_path / "runs"))
        trainer = make_trainer(tmp_path / "runs", [outages], logger=logger, max_steps=30)
        module = ToyModule(step_seconds=0.03)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            started = time.monotonic()
            trainer.fit(module, ToyData())
            spent = time.monotonic() - started - outages.seconds
        said = [str(warning.message) for warning in caught if "tracking store" in str(warning.message)]
    finally:
        if outages.process.poll() is None:
            stop_server(outages.process)
    assert len(module.seen) == 30
    # 30 steps take a second; the rest is the start, and a last try at the end.
    assert spent < 40
    kinds = ("does not answer", "answers again", "does not answer", "unsent.jsonl")
    assert len(said) == len(kinds) and all(kind in sentence for kind, sentence in zip(kinds, said, strict=True))
    kept = read_journal(logger.run_directory / "unsent.jsonl")
    steps = {row[3] for operation in kept if operation["kind"] == "metrics" for row in operation["metrics"]}
    assert steps == set(range(26, 31))
    assert kept[-1] == {"kind": "status", "status": "FINISHED"}

    server = start_server(tmp_path, port)
    try:
        checkpoint = str(logger.run_directory / "checkpoints" / "last.ckpt")
        again = MLflowLogger("toy", tracking_uri=address, runs_directory=str(tmp_path / "runs"))
        again.resume_from(checkpoint)
        trainer = make_trainer(tmp_path / "runs", logger=again, max_steps=31)
        trainer.fit(ToyModule(), ToyData(), ckpt_path=checkpoint)
        client, run_id = again.experiment, logger.run_id
        history = client.get_metric_history(run_id, "train/loss")
        assert {metric.step for metric in history} == set(range(1, 32))
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        (data,) = (one.dataset for one in run.inputs.dataset_inputs)
        assert (data.name, data.digest) == ("ToyData:training", "f" * 16)
        assert {one.step for one in run.outputs.model_outputs} == {20, 31}
        assert not (logger.run_directory / "unsent.jsonl").exists()
    finally:
        stop_server(server)
