"""A model's version in MLflow's registry: linked to its run, whole or not there."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse
from urllib.request import url2pathname

from lit_pretrain.errors import UserError, without_credentials
from lit_pretrain.tracking.find import DEFAULT_EXPERIMENT
from lit_pretrain.tracking.logged_models import models_of
from lit_pretrain.tracking.paths import resolve_runs_directory, safe_name
from lit_pretrain.tracking.store import (
    TAG_LIMIT,
    address_of,
    open_experiment,
    open_store,
    prepare_mlflow,
    resolve_tracking_uri,
)
from lit_pretrain.tracking.writer import first_line, is_gone

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.tracking import MlflowClient

    from lit_pretrain.commands.registration.subject import Subject

# What the address models:/NAME@ALIAS has a meaning of its own for, and MLflow's own.
NO_NAME = re.compile(r"[/:@?%#\\]")
VARIABLE = "MLFLOW_TRACKING_URI"
# Of the registry, where it is not that of the store.
REGISTRY_VARIABLE = "MLFLOW_REGISTRY_URI"
EXISTS = "RESOURCE_ALREADY_EXISTS"
STAGES = ("validation/", "test/")


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: Of the model.
        number: Of the version, from 1.
        alias: By which it is called too; null for none.
        former: The version that the alias was of before; null for none.
        tracking_uri: Where the registry is.
        linked: Whether it knows its run.
    """

    name: str
    number: str
    alias: str | None
    former: str | None
    tracking_uri: str
    linked: bool

    @property
    def uri(self) -> str:
        """What MLflow loads it by."""
        return f"models:/{self.name}@{self.alias}" if self.alias else f"models:/{self.name}/{self.number}"


def check_names(name: str, alias: str | None) -> None:
    """Refuse names that the registry would not take, or not find again.

    Raises:
        UserError: In one sentence.
    """
    if not name.strip() or name != name.strip() or NO_NAME.search(name) or set(name) <= {"."}:
        raise UserError(
            f"--name is '{name}', and a registered model's name has none of / : @ ? % # \\ and no space around it: "
            f"give '{safe_name(name)}', say."
        )
    if alias is None:
        return
    if not re.fullmatch(r"[\w-]{1,255}", alias) or alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise UserError(
            f"--alias is '{alias}': give letters, digits, - and _ alone, and neither latest nor v1 and the like, which "
            "MLflow keeps for itself."
        )


def register(subject: "Subject", name: str, alias: str | None) -> Version:
    """Write a model and make it a version of a registered one, beside its run.

    Args:
        subject: What is registered.
        name: Of the registered model, which is made if there is none.
        alias: To be set to the version.

    Raises:
        UserError: If the store or its registry takes no model, or what is needed is not known; nothing is left then.
    """
    runs_directory = subject.run.directory.parent.parent if subject.run else resolve_runs_directory()
    uri = address_of(subject.run) if subject.run else resolve_tracking_uri(None, runs_directory)
    prepare_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    client = open_store(uri, runs_directory)
    try:
        with default_store(uri), registered_model(client, name):
            run = run_of(client, subject)
            if run is not None:
                experiment_id = run.info.experiment_id
            else:
                experiment = subject.run.experiment if subject.run else DEFAULT_EXPERIMENT
                experiment_id, _ = open_experiment(client, uri, runs_directory, experiment)
            former = client.get_registered_model(name).aliases.get(alias or "")
            with logged_model(client, subject, name, experiment_id, run) as model:
                number = make_version(client, subject, name, model, run)
            if alias is not None:
                client.set_registered_model_alias(name, alias, number)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        registry = os.environ.get(REGISTRY_VARIABLE) or uri
        raise UserError(
            f"The registry of {without_credentials(registry)} takes no model ({first_line(error)}): see that its "
            "database and its artifacts can be written and have room, and register it again."
        ) from error
    return Version(name, number, alias, None if former == number else former, uri, run is not None)


@contextmanager
def default_store(uri: str) -> Iterator[None]:
    """Let a store be the one that MLflow uses by itself, in which the registry of a database looks for models.

    MLflow's own way back forgets the variable of the environment.
    """
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    before = os.environ.get(VARIABLE)
    try:
        with _use_tracking_uri(uri):
            yield
    finally:
        if before is not None:
            os.environ[VARIABLE] = before


@contextmanager
def registered_model(client: "MlflowClient", name: str) -> Iterator[None]:
    """See that a model of a name is in the registry; one that was made is removed again if no version comes of it.

    It comes first, since a registry that takes nothing says so here, before the weights are copied.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != EXISTS:
            raise
        if "taken by a prompt" in str(error):
            raise UserError(f"The registry has a prompt that is called '{name}': give another --name.") from error
        yield
        return
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            if not client.search_model_versions(f"name = '{name}'", max_results=1):
                client.delete_registered_model(name)
        raise


def run_of(client: "MlflowClient", subject: "Subject") -> "Run | None":
    """The run in the store, or null if it is not there (any more)."""
    from mlflow.exceptions import MlflowException

    if subject.run is None:
        return None
    try:
        return client.get_run(subject.run.run_id)
    except MlflowException as error:
        if is_gone(error):
            return None
        raise


@contextmanager
def logged_model(
    client: "MlflowClient", subject: "Subject", name: str, experiment_id: str, run: "Run | None"
) -> "Iterator[LoggedModel]":
    """A model of an experiment with all its files, ready; it is removed again if what is done with it fails."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    from lit_pretrain.commands.registration.model_directory import write_model

    run_id = run.info.run_id if run is not None else None
    # Dots and quotes, which a registered model's name may have, are not for these.
    plain = re.sub(r"[.%\"']", "-", name)
    model = client.create_logged_model(experiment_id, plain, run_id, tags_of(subject), model_type=subject.task)
    try:
        with tempfile.TemporaryDirectory(prefix="lit_pretrain-") as directory:
            record = Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id)
            written = write_model(subject, record, Path(directory))
            client.log_model_artifacts(model.model_id, str(written))
        if run is not None:
            client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=subject.step)])
            copy_metrics(client, run, subject.step, model.model_id)
        client.finalize_logged_model(model.model_id, "READY")
        yield model
    except BaseException:
        remove(client, model)
        raise


def make_version(client: "MlflowClient", subject: "Subject", name: str, model: "LoggedModel", run: "Run | None") -> str:
    """The number of a new version of a registered model."""
    version = client.create_model_version(
        name,
        f"models:/{model.model_id}",
        run_id=run.info.run_id if run is not None else None,
        tags=tags_of(subject),
        description=description_of(subject),
        model_id=model.model_id,
    )
    return str(version.version)


def copy_metrics(client: "MlflowClient", run: "Run", step: int, model_id: str) -> None:
    """Let a model have what was measured with its checkpoint, by its run and by those that have tested it.

    Args:
        client: Of the store.
        run: Which has trained it.
        step: Of the checkpoint.
        model_id: Of the model.
    """
    from mlflow.entities import Metric

    checkpoint = models_of(client, run).get(step)
    if checkpoint is not None:
        points = client.get_logged_model(checkpoint.model_id).metrics or []
    else:
        # Of a run from before checkpoints had models of their own.
        histories = (client.get_metric_history(run.info.run_id, name) for name in run.data.metrics)
        points = [point for points in histories for point in points if point.step == step]
    by_run: dict[str, list[Metric]] = {}
    for point in points:
        if point.key.startswith(STAGES):
            data = point.dataset_name, point.dataset_digest
            metric = Metric(point.key, point.value, point.timestamp, point.step, model_id, *data)
            by_run.setdefault(point.run_id or run.info.run_id, []).append(metric)
    for run_id, metrics in by_run.items():
        client.log_batch(run_id, metrics=metrics)


def remove(client: "MlflowClient", model: "LoggedModel") -> None:
    """Take a model out of its experiment, with its files where they are on this machine."""
    # The store may be away, or take nothing: what has failed before is told, and not this.
    with contextlib.suppress(Exception):
        client.delete_logged_model(model.model_id)
    place = urlparse(model.artifact_location)
    if place.scheme in ("", "file"):
        shutil.rmtree(url2pathname(place.path), ignore_errors=True)


def tags_of(subject: "Subject") -> dict[str, str]:
    """What is searched for and looked up in MLflow's pages."""
    return {name: value[:TAG_LIMIT] for name, value in subject.fingerprints.items()}


def description_of(subject: "Subject") -> str:
    """A few words of Markdown on a version."""
    columns = " and ".join(f"`{column}`" for column in subject.settings.columns)
    facts, run = subject.facts, subject.run
    text = f"{subject.task.capitalize()} of the column{'s' if len(subject.settings.columns) > 1 else ''} {columns}."
    if subject.settings.kind == "image":
        text += " Pictures are the bytes of their files, in JSON as base64."
    if facts is not None and facts.classes:
        text += f" Probabilities are in the order {', '.join(f'`{name}`' for name in facts.classes)}."
    if run is not None:
        text += f" From the run {run.run_name} (`{run.run_id}`), step {subject.step}."
    return text
