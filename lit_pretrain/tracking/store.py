"""Opens the tracking store: MLflow's database beside the runs, or a tracking server.

Everything that is made once (the database, its tables, the experiment) is made under a file lock, since two processes
that meet on a new database otherwise race and one of them fails.
"""

import contextlib
import errno
import logging
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass, url2pathname

from lit_pretrain.collector import paused_collector
from lit_pretrain.errors import UserError, without_credentials
from lit_pretrain.tracking.data_inputs import as_entities
from lit_pretrain.tracking.find import RunRecord, list_runs
from lit_pretrain.tracking.logged_models import send_measurement, send_models
from lit_pretrain.tracking.paths import ARTIFACTS_NAME, DATABASE_NAME, make_directory, remove_unfinished, safe_name
from lit_pretrain.tracking.processes import host_name, process_identity, state_of
from lit_pretrain.tracking.runs_table import VIEW_TAG, note_of_experiment, with_columns
from lit_pretrain.tracking.schema import bring_up_to_date
from lit_pretrain.tracking.writer import GONE, Operation, first_line, is_gone, is_refusal

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

HOST_TAG = "process.host"
PROCESS_TAG = "process.identity"
# MLflow's own limit.
TAG_LIMIT = 5000
NOTE_TAG = "mlflow.note.content"
# What the figures of a run are without learning, as JSON.
CHANCE_TAG = "chance"
# Markdown shows neither.
NOTE_BEGIN = "<!-- from here on written by lit_pretrain, anew when the run ends -->"
NOTE_END = "<!-- up to here written by lit_pretrain -->"
# What a run can be without.
DECORATIONS = ("inputs", "models", "measurement")
NO_ENDPOINT = "ENDPOINT_NOT_FOUND"
CONNECT_SECONDS = 5.0
# How long a database may be locked by another program before a run is refused; trainings side by side lock it for less.
LOCK_SECONDS = 20.0
# What MLflow says of a database that is not of its version.
OLD_SCHEMA = "out-of-date database schema"
# Where a database notes with their whole paths in which files something lies.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# Without it MLflow's page takes an experiment for one on chat bots, and hides the charts behind a switch.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def prepare_mlflow() -> None:
    """Set what MLflow reads when it is imported; whatever the person has set stays.

    No calls home, no warning where git is missing, no links printed in the middle of a progress bar, and requests that
    give up in seconds: MLflow's own defaults wait four minutes for a server that is gone.
    """
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Whatever a database refuses is logged with its traceback, and raised too: whoever asked says it in a sentence.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def resolve_tracking_uri(tracking_uri: str | None, runs_directory: Path) -> str:
    """Return the store's address: the argument, else $MLFLOW_TRACKING_URI, else the database in the runs directory.

    Raises:
        UserError: If it names a store of files, which MLflow no longer writes.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI") or ""
    uri = tracking_uri or address
    if address and uri == without_credentials(address):
        # As a run's config has it, which keeps no password.
        uri = address
    if not uri:
        return f"sqlite:///{runs_directory / DATABASE_NAME}"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        # Relative to the working directory of whoever asks, and that of the user interface may be another.
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    if uri.startswith("file:") or "://" not in uri and not uri.startswith("databricks"):
        raise UserError(
            f"The tracking address '{uri}' is a directory, which MLflow no longer writes to: use "
            f"sqlite:///{Path(uri.removeprefix('file:')).resolve() / DATABASE_NAME}, http://..., or leave it unset."
        )
    return uri


def address_of(record: RunRecord) -> str:
    """The store that has a run: as it noted it, with the credentials of $MLFLOW_TRACKING_URI if it is the same."""
    database = record.directory.parent.parent / DATABASE_NAME
    noted = Path(record.tracking_uri.removeprefix("sqlite:///"))
    if record.tracking_uri.startswith("sqlite:///") and not noted.is_file() and database.is_file():
        # The runs directory was moved with its database.
        return f"sqlite:///{database}"
    return resolve_tracking_uri(record.tracking_uri, record.directory.parent.parent)


def check_reachable(uri: str) -> None:
    """Try to connect to a tracking server.

    Raises:
        UserError: If nobody listens there, within seconds.
    """
    parts = urlparse(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    if getproxies().get(parts.scheme) and not proxy_bypass(parts.hostname):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise unreachable(uri, error) from error


def unreachable(uri: str, error: BaseException) -> UserError:
    """The sentence for a store that cannot be used."""
    return UserError(
        f"The tracking server {without_credentials(uri)} cannot be used ({first_line(error)}): start it, correct "
        "MLFLOW_TRACKING_URI, or unset it to log into a local database."
    )


def load_mlflow() -> None:
    """Import what a run needs of MLflow, most of which is else loaded by the first client of a database."""
    prepare_mlflow()
    with paused_collector():
        import mlflow.store.tracking.sqlalchemy_store
        import mlflow.tracking  # noqa: F401
    prepare_mlflow()


def open_store(uri: str, runs_directory: Path) -> "MlflowClient":
    """Connect to the store, making a new database if there is none.

    Args:
        uri: From `resolve_tracking_uri`.
        runs_directory: Where the lock of a local database lies.

    Raises:
        UserError: If the server or the database cannot be used.
    """
    prepare_mlflow()
    check_reachable(uri)
    with paused_collector():
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
        from sqlalchemy.exc import SQLAlchemyError

    prepare_mlflow()  # once more for the levels, which the import has set
    try:
        if not uri.startswith("sqlite"):
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
        make_directory(Path(uri.removeprefix("sqlite:///")).parent)
        # Much of MLflow is only imported by the first client of a database.
        with database_lock(runs_directory), paused_collector():
            database = Path(uri.removeprefix("sqlite:///"))
            check_database(database)
            bring_up_to_date(database, runs_directory)
            client = MlflowClient(uri)
            if uri == f"sqlite:///{runs_directory / DATABASE_NAME}":
                relocate_artifacts(runs_directory)
            return client
    except (MlflowException, SQLAlchemyError, sqlite3.DatabaseError, OSError, ValueError) as error:
        if uri.startswith("sqlite"):
            if is_locked(error):
                raise locked(uri) from error
            advice = "see that it can be written" if is_forbidden(error) else "move it away"
            raise UserError(
                f"The database {uri.removeprefix('sqlite:///')} cannot be used ({first_line(error)}): {advice}, or set "
                "LIT_PRETRAIN_RUNS to another place."
            ) from error
        if OLD_SCHEMA in str(error):
            address = without_credentials(uri)
            raise UserError(
                f"The database {address} has the tables of another MLflow than the one that is installed here: back it "
                f"up and run mlflow db upgrade {address}, or install the MLflow that it was made with."
            ) from error
        raise unreachable(uri, error) from error


def is_forbidden(error: BaseException) -> bool:
    """Whether a database is whole, and may not be written."""
    return getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM) or "readonly" in str(error)


def is_locked(error: BaseException) -> bool:
    """Whether another program holds a database for itself."""
    return "database is locked" in str(error)


def locked(uri: str) -> UserError:
    """The sentence for a database that another program holds."""
    return UserError(
        f"The database {uri.removeprefix('sqlite:///')} is locked by another program: end that, a viewer of databases "
        "or a copy that is being made, and start again, or set LIT_PRETRAIN_RUNS to another place."
    )


@contextlib.contextmanager
def lock_told(uri: str) -> Iterator[None]:
    """Within this, what MLflow raises of a locked database is a sentence.

    Raises:
        UserError: That sentence.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, UserError) and is_locked(error):
            raise locked(uri) from error
        raise


def check_database(path: Path) -> None:
    """Look whether a file is a database that can be read, if it is there; MLflow would try for more than a minute.

    Raises:
        sqlite3.DatabaseError: If it is not, or is locked for long.
    """
    if not path.is_file():
        return
    with contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()


def relocate_artifacts(runs_directory: Path) -> None:
    """Let the database of a runs directory that was moved or copied look for artifacts beside it.

    MLflow notes their places with their whole paths; what is logged would go to the old place, or nowhere.
    """
    database, artifacts = runs_directory / DATABASE_NAME, runs_directory / ARTIFACTS_NAME
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
            locations = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
            places = {
                Path(url2pathname(urlparse(location).path))
                for (location,) in locations
                if str(location).startswith("file:")
            }
            for former in {place.parent for place in places} - {artifacts}:
                former_database = former.parent / DATABASE_NAME
                if former.name != ARTIFACTS_NAME or former_database.exists() and former_database.samefile(database):
                    # Somewhere of a person's choice, or the same directory by another of its names.
                    continue
                start = f"{former.as_uri()}/"
                for table, column in PLACES:
                    if not connection.execute(f"PRAGMA table_info({table})").fetchall():
                        continue  # of an earlier schema
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (f"{artifacts.as_uri()}/", len(start) + 1, len(start), start),
                    )
    except sqlite3.Error:
        # Of an earlier schema, or read-only: MLflow says what is wrong with it.
        return


def database_lock(runs_directory: Path) -> Any:
    """The lock that whoever makes something in the database holds."""
    from filelock import FileLock

    return FileLock(make_directory(runs_directory) / ".mlflow.lock", timeout=120)


def open_experiment(client: "MlflowClient", uri: str, runs_directory: Path, name: str) -> tuple[str, str | None]:
    """Find or make an experiment; one that was deleted in the user interface is restored.

    Returns:
        Its id, and a sentence to show the person (null for none).
    """
    from mlflow.exceptions import MlflowException

    local = uri.startswith("sqlite")
    location = None
    if local:
        # Without it MLflow writes to ./mlruns of whichever directory the person happens to stand in.
        location = make_directory(runs_directory / ARTIFACTS_NAME / safe_name(name)).as_uri()
    with database_lock(runs_directory):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS), None
            except MlflowException:
                # Another machine made it on the same server between the two calls.
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
            return experiment.experiment_id, f"The experiment '{name}' had been deleted; it was restored for this run."
    return experiment.experiment_id, None


def end_dead_runs(client: "MlflowClient", experiment_ids: list[str], runs_directory: Path | None = None) -> list[str]:
    """Mark as killed the runs of this machine that claim to be running though their process is gone.

    Args:
        client: Of the store.
        experiment_ids: Which experiments' runs.
        runs_directory: Where their directories may lie, by which those of other containers and of machines with this
            one's name are known to be gone.

    Returns:
        Ids of the runs that were marked.
    """
    if not experiment_ids:
        return []
    condition = f"attributes.status = 'RUNNING' and tags.`{HOST_TAG}` = '{host_name()}'"
    ended, directories = [], None
    for run in client.search_runs(experiment_ids, condition, max_results=1000):
        identity = run.data.tags.get(PROCESS_TAG, "")
        if identity == process_identity():
            continue
        if directories is None:
            records = list_runs(runs_directory) if runs_directory is not None else []
            directories = {record.run_id: record.directory for record in records}
        directory = directories.get(run.info.run_id)
        if state_of(identity, directory) == "dead":
            client.set_terminated(run.info.run_id, "KILLED")
            ended.append(run.info.run_id)
            if directory is not None:
                remove_unfinished(directory)
    return ended


def end_all_dead_runs(database: Path, runs_directory: Path) -> None:
    """Mark as killed every run in a database that claims to be running on this machine though its process is gone."""
    # Asked without MLflow, whose import takes seconds and is in vain nearly always.
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            running = connection.execute("SELECT experiment_id FROM runs WHERE status = 'RUNNING'").fetchall()
    except sqlite3.Error:
        # Not a database MLflow has made; the server will say what is wrong with it.
        return
    if database == runs_directory / DATABASE_NAME:
        relocate_artifacts(runs_directory)
    if running:
        client = open_store(f"sqlite:///{database}", runs_directory)
        end_dead_runs(client, sorted({str(experiment_id) for (experiment_id,) in running}), runs_directory)


def described(note: str, text: str) -> str:
    """A run's note in which the description is `text`, in the place of an earlier one; what else it holds stays."""
    before, begin, rest = note.partition(NOTE_BEGIN)
    _, end, after = rest.partition(NOTE_END)
    if begin and not end:
        # Its end was taken away.
        after = ""
    before, after = (
        (f"{before.rstrip()}\n\n" if before.strip() else ""),
        f"\n\n{after.strip()}" if after.strip() else "",
    )
    room = TAG_LIMIT - len(before) - len(after) - len(NOTE_BEGIN) - len(NOTE_END) - 4
    return note if room < len(text) / 2 else f"{before}{NOTE_BEGIN}\n\n{text[:room]}\n\n{NOTE_END}{after}"


class RunGoneError(Exception):
    """The run was deleted, or is not in the store."""

    error_code = GONE


def send(client: "MlflowClient", run_id: str, operation: Operation, directory: Path) -> None:
    """Send one operation of a run to the store, and wait until it is there.

    Args:
        client: Of the store.
        run_id: MLflow's.
        operation: What to send.
        directory: The run's, below which the files of artifacts lie.

    Raises:
        RunGoneError: If the store takes nothing of this run any more.
    """
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    try:
        match operation["kind"]:
            case "metrics":
                client.log_batch(run_id, metrics=[Metric(*row) for row in operation["metrics"]])
            case "params":
                client.log_batch(run_id, params=[Param(*pair) for pair in operation["params"].items()])
            case "tags":
                client.log_batch(run_id, tags=[RunTag(*pair) for pair in operation["tags"].items()])
            case "inputs":
                client.log_inputs(run_id, as_entities(operation["inputs"]))
            case "models":
                send_models(client, run_id, operation["models"], operation["ended"])
            case "measurement":
                send_measurement(
                    client, run_id, operation["source_run_id"], operation["checkpoint"], operation["metrics"]
                )
            case "columns":
                experiment_id = client.get_run(run_id).info.experiment_id
                before = client.get_experiment(experiment_id).tags
                tag, tags = before.get(VIEW_TAG), operation.get("tags", ())
                view = with_columns(tag, operation["metrics"], int(time.time() * 1000), tags)
                if view is not None and view != tag:
                    client.set_experiment_tag(experiment_id, VIEW_TAG, view)
                if view is not None and NOTE_TAG not in before:
                    client.set_experiment_tag(experiment_id, NOTE_TAG, note_of_experiment(experiment_id))
            case "description":
                note = client.get_run(run_id).data.tags.get(NOTE_TAG, "")
                client.set_tag(run_id, NOTE_TAG, described(note, operation["text"]))
            case "artifact":
                if (file := directory / operation["file"]).exists():
                    client.log_artifact(run_id, str(file), operation["folder"])
            case "status":
                client.set_terminated(run_id, operation["status"])
    except MlflowException as error:
        if error.error_code == NO_ENDPOINT and operation["kind"] in DECORATIONS:
            # A server of before MLflow 3 takes figures all the same.
            return
        # A deleted run is refused as a wrong value is, whose neighbours would be tried one by one.
        if is_refusal(error) and (is_gone(error) or client.get_run(run_id).info.lifecycle_stage == "deleted"):
            raise RunGoneError(first_line(error)) from error
        raise
