"""Where a checkpoint comes from, as far as it can still be found out: its run in MLflow, its config, its ancestors.

A run's database may be gone, or on a server that is down, and a run's directory may have been moved: whatever cannot be
read is said to be unknown, and why.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_pretrain.commands.exports.subject import Subject
from lit_pretrain.errors import UserError
from lit_pretrain.modules.checkpoints import read_checkpoint
from lit_pretrain.required import required
from lit_pretrain.tracking.find import RunRecord, read_run_file, run_directory_of_checkpoint
from lit_pretrain.tracking.paths import DATABASE_NAME, RUN_FILE_NAME
from lit_pretrain.tracking.save_config import flatten_config
from lit_pretrain.tracking.store import open_store
from lit_pretrain.tracking.writer import first_line

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

# Of a chain of checkpoints, against one that begins with itself.
MOST_ANCESTORS = 20
STAGES = ("validation/", "test/")


@dataclass(frozen=True)
class Metric:
    """One metric of the run.

    Attributes:
        name: As logged.
        best: Its best value; null where none is recorded.
        last: Its last value.
        here: Its value at the checkpoint's step; null where it was not measured there.
    """

    name: str
    best: float | None
    last: float
    here: float | None


@dataclass
class Provenance:
    """What is known of a checkpoint's making.

    Attributes:
        run: Its run, or null if it does not lie in a run's directory.
        settings: The run's config, flat: "data.path" and so on.
        facts: What the run recorded of its data and model.
        tags: What the run recorded of code and machine.
        metrics: What was measured.
        ancestors: What each checkpoint was initialised from, the nearest first.
        unknown: Sentences on what could not be read.
    """

    run: RunRecord | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    ancestors: list[dict[str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def find_out(subject: Subject) -> Provenance:
    """Gather what is known; never fails for what is gone."""
    provenance = Provenance(ancestors=ancestors_of(subject.record, subject.tower))
    if subject.is_pair:
        # One tower after the other.
        provenance.ancestors = [
            one | {"tower": tower} for tower in subject.parts for one in ancestors_of(subject.record, tower)
        ]
    directory = run_directory_of_checkpoint(subject.path)
    if directory is None:
        provenance.unknown.append("The checkpoint does not lie in a run's directory: its data, settings and metrics.")
        return provenance
    try:
        provenance.run = read_run_file(directory / RUN_FILE_NAME)
    except UserError as error:
        provenance.unknown.append(f"The run: {error}")
        return provenance
    read_config(provenance)
    read_run(provenance, subject.step)
    return provenance


def read_config(provenance: Provenance) -> None:
    """The config that the run was started with."""
    path = required(provenance.run).directory / "config.yaml"
    try:
        provenance.settings = dict(flatten_config(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (OSError, yaml.YAMLError) as error:
        provenance.unknown.append(f"The run's config.yaml ({first_line(error)}): the settings.")


def read_run(provenance: Provenance, step: int) -> None:
    """What MLflow has of the run."""
    record = required(provenance.run)
    address = store_address(record)
    if address is None:
        provenance.unknown.append(
            "The run's database is gone: its metrics and what it recorded of data, code and machine."
        )
        return
    try:
        client = open_store(address, record.directory.parent.parent)
        run = client.get_run(record.run_id)
        provenance.metrics = metrics_of(client, run, step)
    except Exception as error:  # MLflow, SQLAlchemy and the network each have their own errors
        provenance.unknown.append(f"The run in MLflow ({first_line(error)}): its metrics and what it recorded.")
        return
    provenance.facts, provenance.tags = dict(run.data.params), dict(run.data.tags)


def store_address(run: RunRecord) -> str | None:
    """Address of the store that has the run; null for a database that is not there (and must not be made anew)."""
    if not run.tracking_uri.startswith("sqlite:///"):
        return run.tracking_uri
    database = run.directory.parent.parent / DATABASE_NAME
    for path in (Path(run.tracking_uri.removeprefix("sqlite:///")), database):
        if path.is_file():
            return f"sqlite:///{path}"
    return None


def metrics_of(client: "MlflowClient", run: "Run", step: int) -> list[Metric]:
    """Metrics of the validation and test data, the run's best and last values and those at a step."""
    values = run.data.metrics
    metrics = []
    for name in sorted(values):
        if name.startswith(STAGES):
            history = client.get_metric_history(run.info.run_id, name)
            here = [point.value for point in history if point.step == step]
            metrics.append(Metric(name, values.get(f"best/{name}"), values[name], here[-1] if here else None))
    return metrics


def ancestors_of(record: dict[str, Any], tower: str | None = None) -> list[dict[str, str]]:
    """The chain of what weights were initialised from, as far as the checkpoints are still there.

    Args:
        record: What a checkpoint tells of itself.
        tower: Which of two towers it is about; null where there is one encoder.
    """
    chain: list[dict[str, str]] = []
    lineage = of_tower(record.get("lineage") or {}, tower)
    while lineage and len(chain) < MOST_ANCESTORS:
        chain.append(lineage)
        try:
            lineage_before = read_checkpoint(lineage["init_from"])["lit_pretrain"].get("lineage") or {}
            lineage = of_tower(lineage_before, lineage.get("init_from_tower"))
        except (UserError, KeyError):
            # Gone, or a public model, whose own making is not ours to tell.
            break
    return chain


def of_tower(lineage: dict[str, str], tower: str | None) -> dict[str, str]:
    """Of what is known of two towers, one's."""
    if not tower:
        return lineage
    return {key.removeprefix(f"{tower}_"): value for key, value in lineage.items() if key.startswith(f"{tower}_")}
