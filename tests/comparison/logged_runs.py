"""Runs as the suite logs them, written straight into a store: no training is needed to compare them."""

from pathlib import Path

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

DATA = {"data_facts.validation_fingerprint": "aaaa1111bbbb", "data_facts.validation_samples": "500"}


def log_run(
    client: MlflowClient,
    name: str,
    experiment: str = "tuned",
    settings: dict | None = None,
    curves: dict | None = None,
    tags: dict | None = None,
    status: str = "FINISHED",
    seed: int | None = 0,
) -> str:
    """A fine-tuning whose validation accuracy has risen to 0.8 at step 20; what is given differs. Returns its id."""
    found = client.get_experiment_by_name(experiment)
    # MLflow's own place for artifacts is the working directory.
    place = Path(client.tracking_uri.removeprefix("sqlite:///")).parent / "artifacts"
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, place.as_uri())
    run_id = client.create_run(experiment_id, run_name=name).info.run_id
    defaults = {
        "model": "FineTuning",
        "model.optimizer.learning_rate": "0.001",
        "data.batch_size": "32",
        "trainer.max_steps": "20",
        "model_facts.task": "single_label",
        "model_facts.init_from": "scratch",
        **({"seed_everything": str(seed)} if seed is not None else {}),
    }
    params = {**defaults, **DATA, **(settings or {})}
    curves = {"best/validation/accuracy": {10: 0.7, 20: 0.8}} if curves is None else curves
    client.log_batch(
        run_id,
        [Metric(key, value, step, step) for key, curve in curves.items() for step, value in curve.items()],
        [Param(key, str(value)) for key, value in params.items() if value is not None],
        [RunTag(key, value) for key, value in {"stage": "fit", **(tags or {})}.items()],
    )
    client.set_terminated(run_id, status) if status != "RUNNING" else None
    return run_id


def log_measurement(client: MlflowClient, source: str, metrics: dict, step: int = 20, **settings: str) -> str:
    """A test of a run's checkpoint; `settings` are facts of its data."""
    facts = {"test_fingerprint": "cccc2222dddd", "test_samples": "1000", **settings}
    return log_run(
        client,
        "measured",
        settings={f"data_facts.{key}": value for key, value in facts.items()},
        curves={key: {step: value} for key, value in metrics.items()},
        tags={"stage": "test", "source.run_id": source},
    )
