"""Checkpoints as MLflow's logged models: which there are, what they were measured on, and that no file is copied."""

import http.server
import threading
from contextlib import contextmanager

import pytest
from toy_training import ToyData, ToyModule, make_trainer

from lit_pretrain.callbacks import LastCheckpoint
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.store import send


class NamedData(ToyData):
    """Says where it comes from and how much it is."""

    def describe(self):
        counts = {f"{part}_samples": 12 for part in ("training", "validation", "test")}
        return {"source": "a/b.csv", "data_fingerprint": "f" * 16, "replay_source": "c", **counts}

    def test_dataloader(self):
        return self.val_dataloader()


class ScriptedModule(ToyModule):
    """Its validation loss falls and rises again."""

    losses = (3.0, 1.0, 2.0, 2.5, 0.5, 4.0)

    def validation_step(self, batch, batch_index):
        if not self.trainer.sanity_checking:
            self.log("validation/loss", self.losses[(self.trainer.global_step - 1) // 2])

    def test_step(self, batch, batch_index):
        self.log("test/accuracy", 0.75)


def models_of(client, run_id):
    """Step, kinds and metrics with their data of each model that is shown."""
    run = client.get_run(run_id)
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    found = {}
    for model in models:
        metrics = {one.key: (one.value, one.step, one.dataset_name) for one in model.metrics or []}
        kinds = model.tags["checkpoint.kind"]
        found[int(model.params["step"])] = (kinds, metrics, model)
    return found


def fit(runs, logger, steps, checkpoint=None):
    trainer = make_trainer(runs, [LastCheckpoint()], logger=logger, max_steps=steps, val_check_interval=2)
    trainer.fit(ScriptedModule(), NamedData(), ckpt_path=checkpoint)
    return trainer


def test_the_best_and_the_last_are_models_of_their_steps(tmp_path):
    logger = MLflowLogger("toy", "first/try: 1", runs_directory=str(tmp_path))
    trainer = fit(tmp_path, logger, 6)
    client, run_id = logger.experiment, logger.run_id
    models = models_of(client, run_id)
    assert {step: kinds for step, (kinds, _, _) in models.items()} == {4: "best", 6: "last"}
    data = "a/b.csv:validation[12]"
    assert models[4][1]["validation/loss"] == (1.0, 4, data) and models[6][1]["validation/loss"] == (2.0, 6, data)
    assert models[4][1]["train/loss"][2] == "a/b.csv:training[12]"
    model = models[4][2]
    assert model.name == "first-try- 1-step-4" and model.params["model_facts.parameters"] == "9"
    assert model.tags["checkpoint"] == str(logger.run_directory / "checkpoints" / "epoch=0-step=4.ckpt")
    assert f"register {model.tags['checkpoint']} --name" in model.tags["mlflow.note.content"]
    assert model.status == "READY" and not list((tmp_path / "artifacts").rglob("*.ckpt"))
    run = client.get_run(run_id)
    assert {(one.model_id, one.step) for one in run.outputs.model_outputs} == {
        (models[step][2].model_id, step) for step in (4, 6)
    }
    # The run's own curve has each value once.
    assert [(one.step, one.value) for one in client.get_metric_history(run_id, "validation/loss")] == [
        (2, 3.0),
        (4, 1.0),
        (6, 2.0),
    ]

    # What measures the best one gives it its figures, and has it as its input.
    best = model.tags["checkpoint"]
    measuring = make_trainer(tmp_path, logger=MLflowLogger("elsewhere", runs_directory=str(tmp_path)))
    measuring.test(ScriptedModule(), NamedData(), ckpt_path=best, verbose=False)
    measured = models_of(client, run_id)[4][1]
    assert measured["test/accuracy"] == (0.75, 4, "a/b.csv:test[12]")
    (used,) = client.get_run(measuring.logger.run_id).inputs.model_inputs
    assert used.model_id == model.model_id

    # It goes on: the last model is replaced, the best one too, and marked since it was tested.
    person = client.create_logged_model(run.info.experiment_id, "mine", run_id)
    again = MLflowLogger("toy", runs_directory=str(tmp_path))
    last = str(trainer.checkpoint_callback.last_model_path)
    again.resume_from(last)
    fit(tmp_path, again, 12, last)
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert person.model_id in {one.model_id for one in models}
    kinds = {one.params["step"]: one.tags["checkpoint.kind"] for one in models if one.params}
    assert kinds == {"4": "replaced by a later one", "10": "best", "12": "last"}


@contextmanager
def server_of_before():
    """Answers as a server that has never heard of what it is asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_error(404)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_without_models_and_data_is_spared_them(tmp_path):
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    with server_of_before() as address:
        client = MlflowClient(address)
        send(client, "a" * 32, {"kind": "models", "models": [], "ended": True}, tmp_path)
        send(client, "a" * 32, {"kind": "inputs", "inputs": []}, tmp_path)
        with pytest.raises(MlflowException):
            send(client, "a" * 32, {"kind": "tags", "tags": {"a": "b"}}, tmp_path)
