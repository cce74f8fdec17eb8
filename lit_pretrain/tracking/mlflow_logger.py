"""Lightning's MLflow logger, made fit for long runs that are interrupted, resumed and started side by side.

What differs from its base: the run is made lazily in a database with an absolute address beside the run directories;
its name does not come from the seeded random generator; everything is sent by a thread that survives the loss of the
server; parameters are whole and may change on resume; a resumed run is running again, an interrupted one killed;
metrics carry the optimiser's step.
"""

import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lit_pretrain.errors import UserError, without_credentials
from lit_pretrain.tracking.data_inputs import DataInput
from lit_pretrain.tracking.find import (
    DEFAULT_EXPERIMENT,
    RunRecord,
    list_runs,
    read_run_file,
    run_directory_of_checkpoint,
)
from lit_pretrain.tracking.logged_models import Checkpoint, metric_rows
from lit_pretrain.tracking.metric_points import MetricPoints
from lit_pretrain.tracking.other_loggers import table_text
from lit_pretrain.tracking.paths import (
    RUN_FILE_NAME,
    make_directory,
    remove_unfinished,
    resolve_runs_directory,
    run_directory_name,
    safe_name,
    shown_path,
    write_atomically,
)
from lit_pretrain.tracking.pictures import write_picture
from lit_pretrain.tracking.processes import Presence
from lit_pretrain.tracking.run_start import continue_run, start_run
from lit_pretrain.tracking.store import (
    CHANCE_TAG,
    TAG_LIMIT,
    end_dead_runs,
    lock_told,
    open_experiment,
    open_store,
    resolve_tracking_uri,
    send,
)
from lit_pretrain.tracking.system_metrics import PREFIX, start_monitor, wants_system_metrics
from lit_pretrain.tracking.writer import UNSENT_NAME, Operation, Writer, gather_journals

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    from mlflow.tracking import MlflowClient
    from PIL.Image import Image

# MLflow's own limits.
PARAMETER_LIMIT = 6000
PARAMETERS_PER_REQUEST = 100
KEY_LIMIT = 250


class MLflowLogger(MLFlowLogger):
    """Logs a run to MLflow and keeps its directory `runs/<experiment>/<run name>-<id>`.

    Args:
        experiment: Name of the experiment, under which runs are grouped.
        run_name: Name of the run; null takes the config's name and the time.
        tracking_uri: Address of the store; null takes $MLFLOW_TRACKING_URI, else mlflow.db in the runs directory.
        runs_directory: Where run directories go; null takes $LIT_PRETRAIN_RUNS, else ./runs.
        run_id: A run to continue; null starts a new one.
        tags: Tags of the run.
        system_metrics: Whether the load of processors, memory, disk, network and GPUs of rank zero's machine is logged
            every 10 seconds; null takes $MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.
    """

    tags: dict[str, str]

    def __init__(
        self,
        experiment: str = DEFAULT_EXPERIMENT,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        runs_directory: str | None = None,
        run_id: str | None = None,
        tags: dict[str, str] | None = None,
        system_metrics: bool | None = None,
    ) -> None:
        # The base's constructor connects at once; this one waits until the run is needed.
        Logger.__init__(self)
        if not experiment.strip() or safe_name(experiment) in (".", ".."):
            raise UserError("The experiment's name is empty: set trainer.logger.init_args.experiment.")
        self._system_metrics = wants_system_metrics(system_metrics)
        self._monitor: SystemMetricsMonitor | None = None
        self._samples = itertools.count()
        self.runs_directory = resolve_runs_directory(runs_directory)
        self.tags = dict(tags or {})
        self.resumed = run_id is not None
        # How the run had ended that is resumed.
        self.status_before: str | None = None
        # Step of the checkpoint that a `validate` or `test` measures.
        self.evaluated_step: int | None = None
        self._experiment_name = experiment
        self._experiment_id: str | None = None
        self._tracking_uri = resolve_tracking_uri(tracking_uri, self.runs_directory)
        self._run_name = run_name
        self._suggested_name = "run"
        self._run_id = run_id
        self._run_directory: Path | None = None
        self._initialized = False
        self._writer: Writer | None = None
        self._trainer: Trainer | None = None
        self._presence: Presence | None = None
        self._ended = False
        self._final_status: str | None = None
        self._parameters: dict[str, str] = {}
        self._sent_tags: dict[str, str] = {}
        self._tables: list[str] = []
        self._left_out = False
        # What was logged last, with its step and time, and the data that is read.
        self._latest: dict[str, tuple[float, int, int]] = {}
        self._inputs: list[DataInput] = []

    # -- before the run begins

    def suggest_name(self, name: str) -> None:
        """Set the first half of the run's name (the config's, say), used if the person gave no name."""
        self._suggested_name = name

    def resume_from(self, checkpoint: str | Path, ended: bool = False) -> bool:
        """Continue the run that wrote `checkpoint`; call it before the run begins.

        Args:
            checkpoint: Its path.
            ended: Whether it is known that no other process works on the run, wherever it did.

        Returns:
            Whether the checkpoint lies in a run directory; if not, a new run will be started.
        """
        directory = run_directory_of_checkpoint(Path(checkpoint))
        if directory is None or self._initialized:
            return False
        record = read_run_file(directory / RUN_FILE_NAME)
        self._run_id, self._run_directory, self.resumed = record.run_id, directory, True
        self._ended = ended
        return True

    def attach(self, trainer: "Trainer") -> None:
        """Take the steps of metrics from this trainer; Lightning's own count is one behind and drifts on resume."""
        self._trainer = trainer
        self._final_status = None
        if self._initialized and self._presence is None:
            # One trainer may fit and then test.
            self._presence = Presence.claim(self._begun_directory)
            self._start_monitor()

    def adopt(self, run_id: str | None, run_directory: str | None) -> None:
        """Learn on another rank what rank zero began, so that all name the same directories."""
        if not self._initialized:
            self._run_id = run_id
            self._run_directory = Path(run_directory) if run_directory else None

    # -- the run

    @property
    @rank_zero_experiment
    def experiment(self) -> "MlflowClient":
        """MLflow's client; the first use begins the run. Log through this object's methods, which never wait."""
        if not self._initialized:
            self._begin()
        return self._mlflow_client

    def _begin(self) -> None:
        with lock_told(self._tracking_uri):
            self._begin_run()

    def _begin_run(self) -> None:
        client = self._mlflow_client = open_store(self._tracking_uri, self.runs_directory)
        begun = None
        if self._run_id is not None:
            if self._run_directory is None:
                records = list_runs(self.runs_directory)
                found = (record.directory for record in records if record.run_id == self._run_id)
                self._run_directory = next(found, None)
            begun = continue_run(client, self._run_id, self._tracking_uri, self._run_directory, self._ended)
            if begun is None:
                rank_zero_warn(
                    f"The run {self._run_id} is not in {without_credentials(self._tracking_uri)}, and where it was "
                    "logged cannot be reached: it goes on as a new run there, in the same directory."
                )
                self.tags = {"continues": self._run_id} | self.tags
        if begun is None:
            experiment_id, notice = open_experiment(
                client, self._tracking_uri, self.runs_directory, self._experiment_name
            )
            if notice:
                rank_zero_warn(notice)
            experiment = experiment_id, self._experiment_name
            begun = start_run(client, experiment, self._run_name, self._suggested_name, self.tags)
        self._run_id, self._run_name, self.status_before = begun.run_id, begun.run_name, begun.status_before
        self._experiment_id, self._experiment_name = begun.experiment_id, begun.experiment_name
        self._parameters, self._sent_tags, self._tables = begun.parameters, begun.tags, begun.tables
        self._latest = dict(begun.metrics)
        measured = [step for name, step in self.steps.items() if name.startswith(PREFIX)]
        self._samples = itertools.count(max(measured, default=-1) + 1)
        if self._run_directory is None:
            name = run_directory_name(self._run_name, self._run_id)
            self._run_directory = self.runs_directory / safe_name(self._experiment_name) / name
        make_directory(self._run_directory)
        try:
            self._presence = Presence.claim(self._run_directory)
            record = (self._run_id, self._experiment_name, self._tracking_uri, self._run_name, self._run_directory)
            RunRecord(*record).write()
            if self.resumed:
                remove_unfinished(self._run_directory)
            # Sent first thing, but for the status of a run that is now going on again.
            gather_journals(self._run_directory, but_for=("status",))
        except OSError as error:
            raise UserError(
                f"The run's directory {shown_path(self._run_directory)} cannot be written ({error.strerror or error}): "
                "free some room, or set LIT_PRETRAIN_RUNS to another place."
            ) from error
        journal, run_id = self._run_directory / UNSENT_NAME, begun.run_id

        def history(name: str) -> dict[int, tuple[float, int]]:
            return {one.step: (one.value, one.timestamp) for one in client.get_metric_history(run_id, name)}

        points = MetricPoints(begun.metrics, history)

        def send_new(operation: Operation) -> None:
            if operation["kind"] == "metrics":
                operation = operation | {"metrics": points.new(operation["metrics"])}
                if not operation["metrics"]:
                    return
            elif operation["kind"] == "models":
                models = [one | {"metrics": points.with_times(one["metrics"])} for one in operation["models"]]
                operation = operation | {"models": models}
            send(client, run_id, operation, self._begun_directory)
            points.add(operation["metrics"] if operation["kind"] == "metrics" else [])

        self._writer = Writer(send_new, journal, rank_zero_warn)
        self._initialized = True
        self._start_monitor()
        end_dead_runs(client, [self._experiment_id], self.runs_directory)

    def _start_monitor(self) -> None:
        if not self._system_metrics:
            return
        writer = self._begun_writer

        def log(metrics: dict[str, float]) -> None:
            # MLflow's page draws them over the number of the sample.
            now, sample = int(time.time() * 1000), next(self._samples)
            writer.put({"kind": "metrics", "metrics": [[name, value, now, sample] for name, value in metrics.items()]})

        self._monitor = start_monitor(self.run_id or "", self._tracking_uri, log)

    @property
    def _begun_writer(self) -> Writer:
        assert self._writer is not None
        return self._writer

    @property
    def _begun_directory(self) -> Path:
        assert self._run_directory is not None
        return self._run_directory

    @property
    def resume_count(self) -> int:
        """How often this run was resumed."""
        return int(self._sent_tags.get("resumed", "0"))

    @property
    def parameters(self) -> dict[str, str]:
        """Parameters of the run, those of before it was resumed too."""
        return dict(self._parameters)

    @property
    def sent_tags(self) -> dict[str, str]:
        """Tags of the run, those of before it was resumed too."""
        return dict(self._sent_tags)

    @property
    def latest(self) -> dict[str, float]:
        """The last value of each metric that was logged."""
        return {name: value for name, (value, _, _) in self._latest.items()}

    @property
    def steps(self) -> dict[str, int]:
        """The step of the last value of each metric."""
        return {name: step for name, (_, step, _) in self._latest.items()}

    @property
    def inputs(self) -> list[DataInput]:
        """The data that the run reads."""
        return list(self._inputs)

    @property
    def run_name(self) -> str | None:
        """The run's name, once it has begun."""
        return self._run_name

    @property
    def tracking_uri(self) -> str:
        """Address of the store."""
        return self._tracking_uri

    # -- where things go

    @property
    def run_directory(self) -> Path:
        """The run's directory: run.json, config.yaml, checkpoints/; on rank zero the first use begins the run."""
        _ = self.experiment
        return self._run_directory or self.runs_directory / safe_name(self._experiment_name) / "unknown"

    @property
    def save_dir(self) -> str:
        """The directory that holds experiments; `save_dir/name/version` is the run's directory."""
        return str(self._run_directory.parent.parent if self._run_directory else self.runs_directory)

    @property
    def name(self) -> str:
        """The experiment, as a directory."""
        return self.run_directory.parent.name

    @property
    def version(self) -> str:
        """The run, as a directory."""
        return self.run_directory.name

    # -- logging

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue metrics; returns at once.

        Args:
            metrics: Name -> value.
            step: Optimiser step; null takes the trainer's.
        """
        _ = self.experiment
        now = int(time.time() * 1000)
        step = self._step(step)
        rows: list[list[Any]] = [
            [re.sub(r"[^\w/. -]+", "-", key)[:KEY_LIMIT], float(value), now, step]
            for key, value in metrics.items()
            if not isinstance(value, str)
        ]
        if rows:
            self._latest |= {key: (value, step, now) for key, value, _, step in rows}
            self._begun_writer.put({"kind": "metrics", "metrics": rows})

    def _step(self, step: int | None) -> int:
        if self._trainer is None:
            return step or 0
        if self._trainer.state.fn != "fit" and self.evaluated_step is not None:
            return self.evaluated_step
        # Before a step is counted there, and after the last one, whose report comes when the training ends.
        counted = self._trainer.fit_loop.epoch_loop._batches_that_stepped
        if step is None or step in (counted, self._trainer.global_step - 1):
            return self._trainer.global_step
        return step

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log parameters; on a resumed run only the new ones, since MLflow's never change: changed ones become tags."""
        _ = self.experiment
        flat = _flatten_dict(_convert_params(params), delimiter=".")
        new, changed = {}, {}
        for key, value in flat.items():
            key = re.sub(r"[^\w/. -]+", "-", str(key))[:KEY_LIMIT]
            value = _shorten(str(value), PARAMETER_LIMIT)
            if key not in self._parameters:
                new[key] = value
            elif self._parameters[key] != value:
                changed[key] = value
        self._parameters |= new
        names = list(new)
        for start in range(0, len(names), PARAMETERS_PER_REQUEST):
            chunk = {name: new[name] for name in names[start : start + PARAMETERS_PER_REQUEST]}
            self._begun_writer.put({"kind": "params", "params": chunk})
        if changed:
            self.set_tags({f"resumed.{key}": value for key, value in changed.items()})
            rank_zero_warn(
                f"Parameters that differ from when the run began: {', '.join(sorted(changed))}; MLflow keeps the first "
                "values, the new ones are its tags resumed.*."
            )

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run; equal ones are not sent again."""
        _ = self.experiment
        new = {str(key)[:KEY_LIMIT]: _shorten(str(value), TAG_LIMIT) for key, value in tags.items()}
        new = {key: value for key, value in new.items() if self._sent_tags.get(key) != value}
        self._sent_tags |= new
        names = list(new)
        for start in range(0, len(names), 50):
            self._begun_writer.put({"kind": "tags", "tags": {name: new[name] for name in names[start : start + 50]}})

    @rank_zero_only
    def log_chance(self, figures: Mapping[str, float]) -> None:
        """Keep what figures are without learning, for the pages of the run; see `comparison.figures.chance_of`.

        Args:
            figures: By metric, with the stage or, for all stages, without it. Those of classes are left out where
                a tag has no room for them.
        """
        kept = {name: float(f"{value:.6g}") for name, value in figures.items()}
        if len(text := json.dumps(kept)) > TAG_LIMIT:
            text = json.dumps({name: value for name, value in kept.items() if "/accuracy_" not in name})
        if kept and len(text) <= TAG_LIMIT:
            self.set_tags({CHANCE_TAG: text})

    @rank_zero_only
    def log_inputs(self, inputs: Sequence[DataInput]) -> None:
        """Log what data the run reads; what was logged before is not logged again, by a resumed run neither."""
        _ = self.experiment
        new = [one for one in inputs if one not in self._inputs]
        self._inputs += new
        if new:
            self._begun_writer.put({"kind": "inputs", "inputs": new})

    @rank_zero_only
    def log_checkpoints(self, checkpoints: Mapping[str, tuple[str, int]], ended: bool = False) -> None:
        """Let the run's logged models be these checkpoints, with the figures of their steps; no file is copied.

        Args:
            checkpoints: Path and optimiser step of the `best` and of the `last`.
            ended: Whether the training has.
        """
        _ = self.experiment
        found: dict[int, Checkpoint] = {}
        for kind, (path, step) in checkpoints.items():
            metrics = metric_rows(self._latest, self._inputs, step, ("validation", "train"))
            found.setdefault(step, {"step": step, "kinds": [], "path": path, "metrics": metrics})["kinds"].append(kind)
        self._begun_writer.put({"kind": "models", "models": list(found.values()), "ended": ended})

    @rank_zero_only
    def log_measurement(self, source_run_id: str, checkpoint: str, step: int) -> None:
        """Let the model of the checkpoint that this run has measured have its figures.

        Args:
            source_run_id: Of the run that has trained.
            checkpoint: Its path.
            step: Its optimiser step.
        """
        _ = self.experiment
        metrics = metric_rows(self._latest, self._inputs, step, ("validation", "test", "evaluate"))
        measured = {"step": step, "kinds": [], "path": checkpoint}
        operation = {"kind": "measurement", "source_run_id": source_run_id, "checkpoint": measured, "metrics": metrics}
        self._begun_writer.put(operation)

    @rank_zero_only
    def show_columns(self, metrics: Sequence[str]) -> None:
        """Let the experiment's saved view of its runs, which the command `ui` opens, have columns for these metrics."""
        _ = self.experiment
        self._begun_writer.put({"kind": "columns", "metrics": list(metrics)})

    @rank_zero_only
    def log_description(self, text: str) -> None:
        """Describe the run on MLflow's page, in Markdown, in the place of an earlier description.

        What a person has written there before or after it stays.
        """
        _ = self.experiment
        self._begun_writer.put({"kind": "description", "text": without_credentials(text)})

    @rank_zero_only
    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts.

        Args:
            path: The file; it must stay until the run ends.
            folder: Folder among the artifacts; null for the top.
        """
        _ = self.experiment
        path = Path(path).resolve()
        # The run's directory may be another when it is sent.
        file = path.relative_to(self._begun_directory) if path.is_relative_to(self._begun_directory) else path
        self._begun_writer.put({"kind": "artifact", "file": str(file), "folder": folder or None})

    @rank_zero_only
    def log_text(self, text: str, artifact_file: str) -> None:
        """Write `text` to `artifact_file` in the run's directory and log it as an artifact of the same name."""
        path = self.run_directory / artifact_file
        try:
            write_atomically(path, text)
        except OSError as error:
            self._leave_out(artifact_file, error)
            return
        self._log_file(path, artifact_file)

    @rank_zero_only
    def log_table(self, rows: Sequence[Mapping[str, Any]], artifact_file: str, listed: bool = True) -> None:
        """Log rows as a table that MLflow's page shows, in the format of `mlflow.log_table`.

        Args:
            rows: Column -> value each; a column that a row lacks is empty there.
            artifact_file: Name ending in .json.
            listed: Whether the page's list of tables, which compares runs, offers it too.
        """
        self.log_text(table_text(rows), artifact_file)
        if listed and artifact_file not in self._tables:
            self._tables.append(artifact_file)
            listing = [{"path": path, "type": "table"} for path in self._tables]
            self.set_tags({"mlflow.loggedArtifacts": json.dumps(listing)})

    @rank_zero_only
    def log_picture(self, picture: "Image", key: str, step: int) -> None:
        """Log a picture of a step; MLflow's page shows those of a key as one chart with a slider over the steps.

        The latest is the artifact `key`.png too.
        """
        try:
            paths = write_picture(picture, self.run_directory, key, step)
        except OSError as error:
            self._leave_out(key, error)
            return
        for path in paths:
            self._log_file(path, path.relative_to(self.run_directory).as_posix())
        # What tells the page that there are pictures.
        self.set_tags({"mlflow.loggedImages": "True"})

    def _leave_out(self, name: str, error: OSError) -> None:
        # What only decorates a training must not end it.
        if not self._left_out:
            rank_zero_warn(
                f"{name} cannot be written to {shown_path(self._begun_directory)} ({error.strerror or error}): such "
                "files are left out until there is room, and the training goes on."
            )
        self._left_out = True

    def _log_file(self, path: Path, artifact_file: str) -> None:
        folder = str(Path(artifact_file).parent)
        self.log_artifact(path, None if folder == "." else folder)

    def after_save_checkpoint(self, checkpoint_callback: "ModelCheckpoint") -> None:
        """Note where the checkpoints lie; they are not copied into the artifacts.

        Of several callbacks, only one that compares by a metric knows what is best, and only one keeps the last.
        """
        compared = checkpoint_callback.monitor is not None and checkpoint_callback.save_top_k != 0
        paths = {
            "checkpoint.best": checkpoint_callback.best_model_path if compared else "",
            "checkpoint.last": checkpoint_callback.last_model_path,
        }
        self.set_tags({key: path for key, path in paths.items() if path})

    # -- the end

    def mark(self, status: str) -> None:
        """Fix the status with which the run will end (FINISHED, FAILED or KILLED), whatever Lightning says later."""
        self._final_status = status

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Send everything and end the run: FINISHED, FAILED, or what `mark` said."""
        if not self._initialized:
            return
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        if status != "finished":
            # "finished" is what Lightning says before SLURM queues the job anew: the process still goes on.
            final = self._final_status or {"success": "FINISHED", "failed": "FAILED"}.get(status, status)
            self._begun_writer.put({"kind": "status", "status": final})
        sent = self._begun_writer.close()
        if self._presence is not None:
            self._presence.end()
            self._presence = None
        if not sent:
            rank_zero_warn(
                f"Not everything reached the tracking store; the rest is in "
                f"{shown_path(self._begun_directory / UNSENT_NAME)} and is sent when the run is resumed, or by "
                "python -m lit_pretrain sync."
            )

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything logged so far is sent; says whether it was."""
        return self._writer is None or self._writer.flush(timeout)


def _shorten(text: str, limit: int) -> str:
    text = without_credentials(text)
    mark = "… (the whole is in config.yaml)"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark
