"""Checkpoints as MLflow's logged models: step, settings, and figures with the data that they were measured on.

The files stay where they are. A run has at most two: its best checkpoint, from when it is saved, and its last one, from
when the training ends; the model of a checkpoint that is no longer there is deleted, or marked if it was tested. All is
said as a state ("these are the models of the run"), so that sending it twice, or late, does no harm.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_pretrain.tracking.data_inputs import DataInput
from lit_pretrain.tracking.writer import is_gone

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.tracking import MlflowClient

# By its tags a model of ours is known; those that a person or `register` has logged are left alone.
CHECKPOINT_TAG, STEP_TAG, KIND_TAG = "checkpoint", "checkpoint.step", "checkpoint.kind"
MEASURED_TAG, GONE_TAG = "checkpoint.measured", "checkpoint.gone"
EXTERNAL_TAG, NOTE_TAG = "mlflow.model.isExternal", "mlflow.note.content"
# MLflow's own limits.
METRICS_PER_REQUEST, PARAMETERS, VALUE_LIMIT, TAG_LIMIT = 1000, 100, 500, 5000
MOST_MODELS = 1000
CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}

# A checkpoint: step, kinds ("best", "last"), path, and rows of metrics (name, value, time, step, data set or null).
Checkpoint = dict[str, Any]


def metric_rows(
    latest: Mapping[str, tuple[float, int, int]], inputs: Sequence[DataInput], step: int, prefixes: Iterable[str]
) -> list[list[Any]]:
    """Metrics of a step with the data that they were measured on.

    Args:
        latest: The last value, step and time of each metric.
        inputs: The run's data.
        step: Whose.
        prefixes: First parts of the metrics' names that are meant.

    Returns:
        Rows of name, value, time, step, and name and digest of the data set, null where that is not known.
    """
    rows: list[list[Any]] = []
    for name, (value, at, time) in latest.items():
        prefix = name.partition("/")[0]
        if at == step and prefix in prefixes:
            rows.append([name, value, time, at, data_of(name, inputs)])
    return rows


def data_of(metric: str, inputs: Sequence[DataInput]) -> list[str] | None:
    """Name and digest of the data set that a metric was measured on."""
    prefix = metric.partition("/")[0]
    corpus = "replay_" if "/replay/" in metric else ""
    context = CONTEXTS.get(prefix)
    for one in reversed(inputs):
        # `evaluate` measures on the last part that it names.
        if one["corpus"] == corpus and context in (one["context"], None):
            return [one["name"], one["digest"]]
    return None


def send_models(client: "MlflowClient", run_id: str, checkpoints: Sequence[Checkpoint], ended: bool) -> None:
    """Let a run have a model for each of these checkpoints, and none for others.

    Args:
        client: Of the store.
        run_id: MLflow's.
        checkpoints: Which.
        ended: Whether the training has, so that they are its outputs.
    """
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    models = models_of(client, run)
    wanted = [(find_or_create(client, run, models, checkpoint), checkpoint) for checkpoint in checkpoints]
    for model, checkpoint in wanted:
        if not tags_of(checkpoint).items() <= model.tags.items():
            client.set_logged_model_tags(model.model_id, tags_of(checkpoint))
        log_metrics(client, run_id, model.model_id, checkpoint["metrics"])
    kept = {model.model_id for model, _ in wanted}
    for model in models.values():
        if model.model_id in kept or GONE_TAG in model.tags:
            continue
        if MEASURED_TAG in model.tags:
            client.set_logged_model_tags(model.model_id, {GONE_TAG: "true", KIND_TAG: "replaced by a later one"})
        else:
            client.delete_logged_model(model.model_id)
    known = {output.model_id for output in run.outputs.model_outputs} if run.outputs is not None else set()
    new = [
        LoggedModelOutput(model.model_id, checkpoint["step"])
        for model, checkpoint in wanted
        if model.model_id not in known
    ]
    if ended and new:
        client.log_outputs(run_id, new)


def send_measurement(
    client: "MlflowClient", run_id: str, source_run_id: str, checkpoint: Checkpoint, metrics: list[list[Any]]
) -> None:
    """Let the model of a checkpoint have what a run has measured with it, and be that run's input.

    Args:
        client: Of the store.
        run_id: Of the run that has measured.
        source_run_id: Of the run that has trained.
        checkpoint: What was measured.
        metrics: Rows, as `metric_rows` makes them.
    """
    from mlflow.entities import LoggedModelInput
    from mlflow.exceptions import MlflowException

    try:
        source = client.get_run(source_run_id)
    except MlflowException as error:
        if is_gone(error):
            # Of another store.
            return
        raise
    if source.info.lifecycle_stage == "deleted":
        return
    model = find_or_create(client, source, models_of(client, source), checkpoint)
    if metrics:
        client.set_logged_model_tags(model.model_id, {MEASURED_TAG: "true"})
        log_metrics(client, run_id, model.model_id, metrics)
    inputs = client.get_run(run_id).inputs
    known = {one.model_id for one in inputs.model_inputs} if inputs is not None else set()
    if model.model_id not in known:
        client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])


def models_of(client: "MlflowClient", run: "Run") -> "dict[int, LoggedModel]":
    """A run's models of checkpoints, by their steps."""
    found = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'", max_results=MOST_MODELS
    )
    return {int(model.tags[STEP_TAG]): model for model in found if model.tags.get(STEP_TAG, "").isdecimal()}


def tags_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Tags of a checkpoint's model, among them what MLflow's page shows as its description."""
    path = str(checkpoint["path"])
    kinds = " and ".join(checkpoint["kinds"])
    note = (
        f"The {f'{kinds} ' if kinds else ''}checkpoint of its run, at step {checkpoint['step']}: `{path}`. The file is "
        "not copied; put it into the registry with all that serving needs by\n\n```bash\n"
        f"python -m lit_pretrain register {shlex.quote(path)} --name NAME\n```"
    )
    return {CHECKPOINT_TAG: path[:TAG_LIMIT], KIND_TAG: ", ".join(checkpoint["kinds"]), NOTE_TAG: note[:TAG_LIMIT]}


def find_or_create(
    client: "MlflowClient", run: "Run", models: "dict[int, LoggedModel]", checkpoint: Checkpoint
) -> "LoggedModel":
    """The model of a checkpoint of a run, which is made if it has none; `models` has it then."""
    step = checkpoint["step"]
    if step not in models:
        name = "".join("-" if letter in "/:.%\"'" else letter for letter in run.info.run_name or "run")
        facts = {key: value for key, value in run.data.params.items() if key.startswith("model_facts.")}
        model = client.create_logged_model(
            run.info.experiment_id,
            f"{name}-step-{step}",
            run.info.run_id,
            {STEP_TAG: str(step), EXTERNAL_TAG: "true", **tags_of(checkpoint)},
            {
                "step": str(step),
                **{key: value[:VALUE_LIMIT] for key, value in list(facts.items())[: PARAMETERS - 1]},
            },
            run.data.tags.get("model"),
        )
        # Nothing is uploaded.
        models[step] = client.finalize_logged_model(model.model_id, "READY")
    return models[step]


def log_metrics(client: "MlflowClient", run_id: str, model_id: str, rows: list[list[Any]]) -> None:
    """Give a model metrics that its run has logged before, with the same times: the run has each once still."""
    from mlflow.entities import Metric

    metrics = [
        Metric(name, value, time, step, model_id, *(data if data is not None else (None, None)))
        for name, value, time, step, data in rows
    ]
    for start in range(0, len(metrics), METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])
