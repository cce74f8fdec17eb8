"""How a run begins in MLflow's store: as a new one, or as one that goes on.

A run that goes on keeps what was logged of it; one that another process still works on is left alone.
"""

import datetime
import getpass
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_pretrain.errors import UserError, without_credentials
from lit_pretrain.tracking.find import read_run_file
from lit_pretrain.tracking.paths import RUN_FILE_NAME
from lit_pretrain.tracking.processes import BEAT_SECONDS, host_name, process_identity, state_of
from lit_pretrain.tracking.store import HOST_TAG, PROCESS_TAG, TAG_LIMIT
from lit_pretrain.tracking.writer import is_gone

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# How long another machine's process is looked for, before its run goes on here.
LOOK_SECONDS = 2.5 * BEAT_SECONDS


@dataclass(frozen=True)
class Beginning:
    """What is known of a run when it begins.

    Attributes:
        run_id: MLflow's.
        run_name: Its name.
        experiment_id: MLflow's.
        experiment_name: Its name.
        tags: Those that the store has.
        parameters: Those that the store has, which can never change.
        status_before: How it had ended, if it goes on; else null.
        metrics: The last value of each metric that the store has, with its step and time.
    """

    run_id: str
    run_name: str
    experiment_id: str
    experiment_name: str
    tags: dict[str, str]
    parameters: dict[str, str] = field(default_factory=dict)
    status_before: str | None = None
    metrics: dict[str, tuple[float, int, int]] = field(default_factory=dict)

    @property
    def tables(self) -> list[str]:
        """Tables that were logged of it."""
        return [table["path"] for table in json.loads(self.tags.get("mlflow.loggedArtifacts", "[]"))]


def start_run(
    client: "MlflowClient",
    experiment: tuple[str, str],
    run_name: str | None,
    suggested_name: str,
    tags: dict[str, str],
) -> Beginning:
    """Make a new run.

    Args:
        client: Of the store.
        experiment: MLflow's id of it, and its name.
        run_name: The person's; null makes one of `suggested_name` and the time.
        suggested_name: First half of a name.
        tags: The person's.
    """
    # Neither `random` nor torch: those are seeded, and every run of a config would get the same name.
    name = run_name if run_name is not None else f"{suggested_name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    all_tags = {
        "mlflow.user": user_name(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": without_credentials(shlex.join(["python", "-m", "lit_pretrain", *sys.argv[1:]]))[
            :TAG_LIMIT
        ],
        **process_tags(),
        **{key: without_credentials(str(value)) for key, value in tags.items()},
    }
    run = client.create_run(experiment[0], tags=all_tags, run_name=name)
    return Beginning(run.info.run_id, name, *experiment, all_tags)


def continue_run(
    client: "MlflowClient", run_id: str, tracking_uri: str, directory: Path | None = None, ended: bool = False
) -> Beginning | None:
    """Let a run go on: it is RUNNING again, and restored if it had been deleted.

    Args:
        client: Of the store.
        run_id: MLflow's.
        tracking_uri: Address of the store.
        directory: The run's, if it is here.
        ended: Whether it is known that no other process works on it.

    Returns:
        What is known of it; null if its directory was carried here from where its store is out of reach.

    Raises:
        UserError: If the store does not have it, or another process still works on it.
    """
    from mlflow.entities import RunStatus
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if is_gone(error) and directory is not None and is_carried(directory, tracking_uri):
            return None
        raise UserError(
            f"The run {run_id} is not in {without_credentials(tracking_uri)}: set MLFLOW_TRACKING_URI or the runs "
            f"directory to where it was logged, or remove its {RUN_FILE_NAME}, and its checkpoint begins a new run."
        ) from error
    tags = dict(run.data.tags)
    identity = tags.get(PROCESS_TAG, "")
    if run.info.status == "RUNNING" and not ended and identity != process_identity():
        if state_of(identity, directory, wait=LOOK_SECONDS) == "alive":
            raise UserError(
                f"The run {run.info.run_name} is still going on in process {identity.partition('@')[0]} of "
                f"{tags.get(HOST_TAG)}: stop that one first, or start a new run."
            )
    experiment = client.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    if client.get_run(run_id).info.lifecycle_stage == "deleted":
        client.restore_run(run_id)
        rank_zero_warn(f"The run {run.info.run_name} had been deleted; it was restored to be continued.")
    client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
    for key, value in (process_tags() | {"resumed": str(int(tags.get("resumed", "0")) + 1)}).items():
        client.set_tag(run_id, key, value)
        tags[key] = value
    # Killed without a word, a run stays RUNNING in the store.
    status_before = "KILLED" if run.info.status == "RUNNING" else run.info.status
    return Beginning(
        run_id,
        run.info.run_name,
        run.info.experiment_id,
        experiment.name,
        tags,
        dict(run.data.params),
        status_before,
        {metric.key: (metric.value, metric.step, metric.timestamp) for metric in run.data._metric_objs},
    )


def is_carried(directory: Path, tracking_uri: str) -> bool:
    """Whether a run's directory comes from another machine or place, whose database nobody can ask from here.

    Args:
        directory: The run's, which notes where it was logged.
        tracking_uri: The store that does not have it.
    """
    noted = read_run_file(directory / RUN_FILE_NAME).tracking_uri
    if noted.startswith("sqlite:///"):
        return noted == tracking_uri or not Path(noted.removeprefix("sqlite:///")).is_file()
    # A server must be asked before its run is given up; a run without MLflow has none.
    return not noted


def process_tags() -> dict[str, str]:
    """Tags by which it is seen whether a run's process is still there."""
    return {HOST_TAG: host_name(), PROCESS_TAG: process_identity()}


def user_name() -> str:
    """Who works here."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run under a number without a name.
        return "unknown"
