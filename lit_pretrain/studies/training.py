"""What a cell's process does: train, or go on with a training, measure, and write down what came of it."""

import math
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from filelock import FileLock

from lit_pretrain.errors import UserError
from lit_pretrain.required import required
from lit_pretrain.studies.cells import DONE, CellStore, Outcome
from lit_pretrain.tracking.find import RunRecord, last_checkpoints, list_runs, newest

CELL_TAG = "study.cell"
STAGE_TAG = "study.stage"
KEPT_PARAMETERS = ("model_facts.", "data_facts.")


def train_cell(directory: str, cell_hash: str, job: dict[str, Any]) -> None:
    """Do one cell; its outcome is written whatever happens, but for a signal.

    It waits for whatever trained it before: a machine or a study that is gone may have left a process that still saves.

    Args:
        directory: The study's.
        cell_hash: Which cell.
        job: `fit` and `test` (config files; the second may be null), `checkpoint` (`last` or `best`), `experiment`,
            `study_run` (MLflow's run of the study, whose children alone are looked at), `tracking_uri`,
            `runs_directory`, `metric`, `validation_metric`, `keep_checkpoints`, `threads`, `jobs`.
    """
    import torch

    if job["threads"]:
        os.environ["OMP_NUM_THREADS"] = str(job["threads"])
        torch.set_num_threads(job["threads"])
    store = CellStore(Path(directory))
    with FileLock(store.directory / f"{cell_hash}.training.lock", thread_local=False):
        ended = store.outcome_of(cell_hash)
        if ended is None or ended.status not in DONE:
            store.write(cell_hash, outcome_of_training(cell_hash, job))


def outcome_of_training(cell_hash: str, job: dict[str, Any]) -> Outcome:
    """As `train_and_measure`, whatever is raised."""
    from lit_pretrain.modules.base import NonFiniteLossError

    try:
        return train_and_measure(cell_hash, job)
    except NonFiniteLossError as error:
        return Outcome("diverged", sentence(error))
    except UserError as error:
        print(f"lit_pretrain: {error}", file=sys.stderr)
        return Outcome("failed", sentence(error))
    except Exception as error:
        traceback.print_exc()
        return Outcome("failed", f"{type(error).__name__}: {sentence(error)}")


def sentence(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split())[:600] or type(error).__name__


def train_and_measure(cell_hash: str, job: dict[str, Any]) -> Outcome:
    """Fit, unless an earlier start has, test if asked to, and gather."""
    from lit_pretrain.tracking.store import open_store, send

    client = open_store(job["tracking_uri"], Path(job["runs_directory"]))
    run = latest_run(client, job, cell_hash)
    record = record_of(run, job) if run is not None else None
    done = run is not None and record is not None and run.info.status == "FINISHED"
    if run is None or record is None or not done or (job["test"] and not checkpoint_of(record, "last")):
        # One that failed would fail again in the same place.
        begun = None if run is None or record is None or run.info.status == "FAILED" else checkpoint_of(record, "last")
        command_line("fit", job["fit"], begun)
        run = required(latest_run(client, job, cell_hash))
        record = required(record_of(run, job))
    metrics = dict(run.data.metrics)
    if job["validation_metric"] not in metrics:
        raise UserError(
            f"The training never measured {job['validation_metric']}: set trainer.val_check_interval so that it is "
            "measured within the steps, or the study's validations."
        )
    if job["checkpoint"] == "best":
        # What the best checkpoint had, by the metric's own best value, which the run keeps.
        best = job["validation_metric"]
        metrics[best] = metrics.get(f"best/{best}", metrics.get(best, float("nan")))
    if job["test"]:
        metrics |= measured(client, cell_hash, job, record)
    value = metrics.get(job["metric"])
    if value is None or not math.isfinite(value):
        value_words = "was not measured" if value is None else f"is {value}"
        raise UserError(f"{job['metric']} {value_words}: its run is {record.run_name}, in {record.directory}.")
    history = client.get_metric_history(run.info.run_id, job["validation_metric"])
    hours = metrics.get("throughput/total_hours")
    if not job["keep_checkpoints"]:
        shutil.rmtree(record.checkpoints, ignore_errors=True)
        # Nor have they models any more.
        send(client, record.run_id, {"kind": "models", "models": [], "ended": False}, record.directory)
    return Outcome(
        "finished",
        run_id=run.info.run_id,
        metrics=metrics,
        parameters={key: value for key, value in run.data.params.items() if key.startswith(KEPT_PARAMETERS)},
        history=sorted((point.step, point.value) for point in history),
        seconds=hours * 3600 if hours is not None else None,
        jobs=job["jobs"],
    )


def measured(client: Any, cell_hash: str, job: dict[str, Any], record: RunRecord) -> dict[str, float]:
    """Metrics of the test data, copied to the cell's run too, so that its study's page shows them."""
    from mlflow.entities import Metric

    checkpoint = checkpoint_of(record, job["checkpoint"])
    if checkpoint is None:
        raise UserError(f"The run {record.run_name} has left no checkpoint to test: let the trainer write them.")
    command_line("test", job["test"], checkpoint)
    tested = required(latest_run(client, job, cell_hash, "test"))
    names = [name for name in tested.data.metrics if name.startswith("test/")]
    points = [client.get_metric_history(tested.info.run_id, name)[-1] for name in names]
    client.log_batch(
        record.run_id, metrics=[Metric(point.key, point.value, point.timestamp, point.step) for point in points]
    )
    return {point.key: point.value for point in points}


def command_line(command: str, config: str, checkpoint: Path | None) -> None:
    """One of the suite's own commands, as a person gives it."""
    from lit_pretrain.cli import lightning_cli

    arguments = [command, "--config", config, *(["--ckpt_path", str(checkpoint)] if checkpoint else [])]
    # What the run is recorded to have been started by.
    sys.argv = [sys.argv[0], *arguments]
    lightning_cli.run(arguments)


def latest_run(client: Any, job: dict[str, Any], cell_hash: str, stage: str = "fit") -> Any | None:
    """The newest MLflow run of a cell of this study, or None; that of the same cell of another study is not read."""
    experiment = client.get_experiment_by_name(job["experiment"])
    if experiment is None:
        return None
    text = f"tags.`{CELL_TAG}` = '{cell_hash}' AND tags.`{STAGE_TAG}` = '{stage}'"
    text += f" AND tags.`mlflow.parentRunId` = '{job['study_run']}'"
    runs = client.search_runs([experiment.experiment_id], text, order_by=["attributes.start_time DESC"], max_results=1)
    return runs[0] if runs else None


def record_of(run: Any, job: dict[str, Any]) -> RunRecord | None:
    """The run's directory, or null if it is gone."""
    records = list_runs(job["runs_directory"], job["experiment"])
    return next((record for record in records if record.run_id == run.info.run_id), None)


def checkpoint_of(record: RunRecord, which: str) -> Path | None:
    """A run's last checkpoint, or the best one that its trainer kept; null if it is not there."""
    if which == "last":
        return newest(last_checkpoints(record.checkpoints))
    last = set(last_checkpoints(record.checkpoints))
    return newest(path for path in record.checkpoints.glob("*.ckpt") if path not in last)
