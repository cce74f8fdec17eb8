"""The study's own run in MLflow, parent of its cells' runs, and its directory beside theirs.

One process does a study at a time. It holds a lock on a file while it does, which the system takes back when the
process ends, however it ends, and which other machines that share the runs directory see too. A sweep is done by any
number of processes, which hold the lock only while they find or begin it.
"""

import datetime
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lit_pretrain.errors import UserError, without_credentials
from lit_pretrain.required import required
from lit_pretrain.tracking.find import RunRecord, list_runs
from lit_pretrain.tracking.paths import (
    make_directory,
    resolve_runs_directory,
    run_directory_name,
    safe_name,
    shown_path,
    write_atomically,
)
from lit_pretrain.tracking.processes import host_name, process_identity
from lit_pretrain.tracking.store import (
    HOST_TAG,
    PROCESS_TAG,
    end_dead_runs,
    open_experiment,
    open_store,
    resolve_tracking_uri,
    send,
)

STUDY_TAG = "study"
# The longest that one process takes to begin what several do.
WAIT_SECONDS = 120.0


class StudyRecord:
    """A study's run: found again by its name, else begun.

    Args:
        name: Of the study.
        experiment: MLflow's experiment.
        kind: Which study, for a tag.
        begin: Whether it is going to run; else it is only looked at, which may be done while it runs.
        shared: Whether several processes may do it at once.
        before: Called before the run begins, with `place` known; what it raises leaves no run behind.

    Raises:
        UserError: If another process is at it, on whatever machine.
    """

    def __init__(
        self,
        name: str,
        experiment: str,
        kind: str,
        begin: bool = True,
        shared: bool = False,
        before: Callable[["StudyRecord"], None] | None = None,
    ) -> None:
        self.name, self.experiment, self.kind = name, experiment, kind
        self.runs_directory = resolve_runs_directory()
        self.tracking_uri = resolve_tracking_uri(None, self.runs_directory)
        self._client: Any = None
        self.run_id: str | None = None
        self.directory: Path | None = None
        if begin:
            self._lock = self._hold(WAIT_SECONDS if shared else 0.0)
        try:
            self._find()
            if begin and before is not None:
                before(self)
            if begin:
                self._begin(kind)
        except BaseException:
            if begin:
                self._lock.release()
            raise
        if begin and shared:
            self._lock.release()

    @property
    def place(self) -> Path:
        """The directory, or one beside which it would be."""
        return self.directory or self.runs_directory / safe_name(self.experiment) / "no such study"

    def _find(self) -> None:
        """Look for the directory of an earlier start."""
        marked = [
            record
            for record in list_runs(self.runs_directory, self.experiment)
            if record.run_name == self.name and (record.directory / "study.json").is_file()
        ]
        if marked:
            self.directory, self.run_id = marked[0].directory, marked[0].run_id

    def _hold(self, seconds: float) -> FileLock:
        """Be the only process that does the study; from before it is looked for, so that two do not both begin it."""
        place = make_directory(self.runs_directory / safe_name(self.experiment))
        name = f".{safe_name(self.name)}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}.lock"
        lock = FileLock(place / name, thread_local=False)
        try:
            lock.acquire(timeout=seconds)
        except Timeout as error:
            raise UserError(
                f"The study {self.name} is still going on in another process, which holds {shown_path(lock.lock_file)}"
                ": stop that one first, or give this one another name."
            ) from error
        return lock

    @property
    def client(self) -> Any:
        """MLflow's client."""
        if self._client is None:
            self._client = open_store(self.tracking_uri, self.runs_directory)
        return self._client

    def _begin(self, kind: str) -> None:
        experiment_id, _ = open_experiment(self.client, self.tracking_uri, self.runs_directory, self.experiment)
        process = {HOST_TAG: host_name(), PROCESS_TAG: process_identity()}
        if self.run_id is not None:
            self._continue(process)
        else:
            tags = {STUDY_TAG: kind, "mlflow.source.type": "LOCAL", **process}
            run = self.client.create_run(experiment_id, tags=tags, run_name=self.name)
            self.run_id = run.info.run_id
            folder = run_directory_name(self.name, self.run_id)
            self.directory = make_directory(self.runs_directory / safe_name(self.experiment) / folder)
            RunRecord(self.run_id, self.experiment, self.tracking_uri, self.name, self.directory).write()
        # Cells whose study was killed with them.
        end_dead_runs(self.client, [experiment_id], self.runs_directory)
        facts = {"kind": kind, "started": datetime.datetime.now().isoformat(timespec="seconds")}
        write_atomically(required(self.directory) / "study.json", json.dumps(facts) + "\n")

    def claim(self) -> None:
        """Be the process by whose life the run is known to go on, of several that do a sweep."""
        self._continue({HOST_TAG: host_name(), PROCESS_TAG: process_identity()})

    def _continue(self, process: dict[str, str]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(self.run_id)
        except MlflowException as error:
            raise UserError(
                f"The run of the study {self.name} is not in {without_credentials(self.tracking_uri)}: set "
                "MLFLOW_TRACKING_URI to where it was logged, or give the study another name."
            ) from error
        if run.info.lifecycle_stage == "deleted":
            self.client.restore_run(self.run_id)
        self.client.update_run(self.run_id, status="RUNNING")
        for key, value in process.items():
            self.client.set_tag(self.run_id, key, value)

    def log_file(self, path: Path) -> None:
        """Copy a file into the run's artifacts."""
        self.client.log_artifact(self.run_id, str(path))

    def describe(self, text: str, metrics: Sequence[str], labels: Sequence[str]) -> None:
        """Describe the study on its run's page, and let the table of runs have columns for what tells them apart.

        Args:
            text: Markdown; what a person has written there stays.
            metrics: That the trainings are judged by.
            labels: Of the trainings, which are tags of their runs.
        """
        run_id, directory = required(self.run_id), required(self.directory)
        send(self.client, run_id, {"kind": "description", "text": text}, directory)
        tags = [f"study.{label}" for label in labels]
        send(self.client, run_id, {"kind": "columns", "metrics": list(metrics), "tags": tags}, directory)

    def log_curve(self, name: str, points: list[tuple[int, float]]) -> None:
        """Show a curve on the run's page; its steps are what the study varies, such as numbers of labels."""
        from mlflow.entities import Metric

        now = int(datetime.datetime.now().timestamp() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for step, value in points])

    def end(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED; another process may do the study then."""
        try:
            self.client.set_terminated(self.run_id, status)
        finally:
            self._lock.release()
