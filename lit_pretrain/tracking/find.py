"""Finds runs and checkpoints by what a person calls them: an id, the beginning of one, a name, a path, "last"."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lit_pretrain.errors import UserError, nearest, without_credentials
from lit_pretrain.tracking.paths import RUN_FILE_NAME, resolve_runs_directory, safe_name, shown_path, write_atomically

# Of runs that name none.
DEFAULT_EXPERIMENT = "default"
CHECKPOINTS_NAME = "checkpoints"
RECORD_NAME = "checkpoints.json"
# Where a checkpoint says which run has written it.
RUN_KEY = "lit_pretrain_run"
# What a directory of shards has beside them: all of a checkpoint but its weights and its optimiser's state.
SHARDS = "meta.pt"
SHORTEST_PREFIX = 4
# What a checkpoint of contrastive pretraining holds two of.
TOWERS = ("text", "vision")


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory tells of it.

    Attributes:
        run_id: MLflow's id, 32 hexadecimal characters.
        experiment: Name of the experiment.
        tracking_uri: Address of the store that has the run.
        run_name: Name of the run.
        directory: The run's directory.
    """

    run_id: str
    experiment: str
    tracking_uri: str
    run_name: str
    directory: Path

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints lie."""
        return self.directory / CHECKPOINTS_NAME

    def write(self) -> None:
        """Write the directory's run.json; a password in the store's address stays out of it."""
        content = {
            "run_id": self.run_id,
            "experiment": self.experiment,
            "tracking_uri": without_credentials(self.tracking_uri),
            "run_name": self.run_name,
        }
        write_atomically(self.directory / RUN_FILE_NAME, json.dumps(content, indent=2) + "\n")


def read_run_file(path: Path) -> RunRecord:
    """Read a run.json.

    Raises:
        UserError: If it is not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: content[name] for name in ("run_id", "experiment", "tracking_uri", "run_name")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{shown_path(path)} is not the record of a run: restore or remove its directory.") from error
    return RunRecord(**fields, directory=path.parent.resolve())


def list_runs(runs_directory: str | Path | None = None, experiment: str | None = None) -> list[RunRecord]:
    """All runs that have a directory here, the latest first.

    Args:
        runs_directory: Null takes $LIT_PRETRAIN_RUNS, else ./runs.
        experiment: Only this experiment's; null for all.
    """
    root = resolve_runs_directory(runs_directory)
    records = []
    for path in root.glob(f"{safe_name(experiment) if experiment else '*'}/*/{RUN_FILE_NAME}"):
        try:
            changed, record = path.stat().st_mtime, read_run_file(path)
        except (OSError, UserError):
            # One spoilt directory must not hide the others.
            continue
        # Names that differ may have one directory.
        if experiment is None or record.experiment == experiment:
            records.append((changed, record))
    return [record for _, record in sorted(records, key=lambda pair: pair[0], reverse=True)]


def find_run(
    reference: str,
    runs_directory: str | Path | None = None,
    experiment: str | None = None,
    with_checkpoints: bool = False,
) -> RunRecord:
    """Find a run by its id, a unique beginning of its id (four characters or more), its name, or its directory.

    Args:
        reference: What it is called.
        runs_directory: Null takes $LIT_PRETRAIN_RUNS, else ./runs.
        experiment: Of several that fit, this experiment's are meant; null for none before others.
        with_checkpoints: Whether, of several that fit, only those that have checkpoints count: what measures a run's
            checkpoint is often called as that run is.

    Raises:
        UserError: If no run or more than one fits; the sentence names the nearest, or all that fit.
    """
    path = Path(reference).expanduser()
    if (path / RUN_FILE_NAME).is_file():
        return read_run_file(path / RUN_FILE_NAME)
    records = list_runs(runs_directory)
    for matching in (
        [record for record in records if record.run_id == reference],
        [record for record in records if reference in (record.run_name, record.directory.name)],
        [record for record in records if len(reference) >= SHORTEST_PREFIX and record.run_id.startswith(reference)],
    ):
        if with_checkpoints and len(matching) > 1:
            matching = [record for record in matching if checkpoints_of(record)] or matching
        if len(matching) > 1:
            matching = [record for record in matching if record.experiment == experiment] or matching
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise UserError(f"'{reference}' fits {len(matching)} runs: say which, by id: {_listing(matching)}.")
    root = shown_path(resolve_runs_directory(runs_directory))
    if not records:
        raise UserError(f"There are no runs in {root}: train one, or set LIT_PRETRAIN_RUNS to where they are.")
    names = [name for record in records for name in (record.run_name, record.run_id)]
    if own := [record for record in records if record.experiment == reference]:
        raise UserError(
            f"No run in {root} is called '{reference}', which is an experiment: name one of its runs ({_listing(own)})."
        )
    raise UserError(f"No run in {root} is called '{reference}'{nearest(reference, names)}.")


def holds_shards(path: str | Path) -> bool:
    """Whether a path is a checkpoint of which each process has written its shards."""
    return (Path(path) / SHARDS).is_file()


def find_checkpoint(reference: str, experiment: str | None = None, runs_directory: str | Path | None = None) -> Path:
    """Find a checkpoint.

    Args:
        reference: "last" (the newest of all runs), a path, a run (its newest last.ckpt), or "RUN:best" (its best one;
            "last:best" is that of the newest run).
        experiment: For "last": only this experiment's runs; else those that are meant where several fit.
        runs_directory: Null takes $LIT_PRETRAIN_RUNS, else ./runs.

    Raises:
        UserError: If there is none.
    """
    path = Path(reference).expanduser()
    if path.is_file() or holds_shards(path):
        return path.resolve()
    if reference in ("last", "last:best"):
        runs = {last_checkpoint_of(record): record for record in list_runs(runs_directory, experiment)}
        checkpoint = newest(path for path in runs if path is not None)
        if checkpoint is None:
            where = f"of experiment '{experiment}' in" if experiment else "in"
            raise UserError(
                f"There is no last.ckpt {where} {shown_path(resolve_runs_directory(runs_directory))} to go on from: "
                "train without --ckpt_path first, or name a checkpoint's path."
            )
        if reference == "last":
            return checkpoint
        reference = f"{runs[checkpoint].directory}:best"
    name, _, which = reference.rpartition(":")
    best = bool(name) and which == "best"
    run = Path(name if best else reference).expanduser()
    if path.suffix == ".ckpt" or len(run.parts) > 1 and not (run / RUN_FILE_NAME).is_file():
        siblings = [str(path.parent / sibling.name) for sibling in path.parent.glob("*.ckpt")]
        raise UserError(f"The checkpoint {reference} does not exist{nearest(reference, siblings)}.")
    record = find_run(name if best else reference, runs_directory, experiment, with_checkpoints=True)
    if best:
        checkpoint = best_checkpoint_of(record)
    else:
        checkpoint = last_checkpoint_of(record) or newest(checkpoints_of(record))
    if checkpoint is None:
        raise UserError(f"The run {record.run_name} has no checkpoint in {shown_path(record.checkpoints)}.")
    return checkpoint


def split_tower(reference: str) -> tuple[str, str | None]:
    """Take the name of a tower off a reference: "RUN:text", "RUN:best:vision" and "FILE:text" name one of two.

    Returns:
        The reference without it, and `text`, `vision` or null.
    """
    rest, _, tower = reference.rpartition(":")
    if not rest or tower not in TOWERS or Path(reference).expanduser().exists():
        return reference, None
    return rest, tower


def note_checkpoints(directory: Path, last: str | None, best: str | None, folders: Iterable[str]) -> None:
    """Write down in a run's directory where its checkpoints lie, which may be anywhere and be called anything.

    Args:
        directory: The run's.
        last: Path of the last one, if it is kept.
        best: Path of the best one, if there is one.
        folders: Where all of them lie.
    """

    def shortened(path: str) -> str:
        # A run's directory may be moved, and another command be given elsewhere.
        absolute = Path(path).absolute()
        return str(absolute.relative_to(directory)) if absolute.is_relative_to(directory) else str(absolute)

    files = {name: shortened(path) for name, path in (("last", last), ("best", best)) if path}
    record = {**files, "folders": sorted(shortened(folder) for folder in folders)}
    write_atomically(directory / RECORD_NAME, json.dumps(record, indent=2) + "\n")


def noted_checkpoints(directory: Path) -> dict[str, list[Path]]:
    """What `note_checkpoints` has written, as paths: `last`, `best` and `folders`, each empty if unknown."""
    try:
        record = json.loads((directory / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    paths = {
        "folders": record.get("folders", []),
        **{name: [record[name]] for name in ("last", "best") if name in record},
    }
    return {name: [directory / path for path in paths.get(name, [])] for name in ("last", "best", "folders")}


def last_checkpoint_of(record: RunRecord) -> Path | None:
    """The newest last.ckpt of a run, or null."""
    return newest([*noted_checkpoints(record.directory)["last"], *last_checkpoints(record.checkpoints)])


def best_checkpoint_of(record: RunRecord) -> Path | None:
    """The checkpoint of a run that was best by the metric it was kept for, or null."""
    noted = newest(noted_checkpoints(record.directory)["best"])
    return noted or best_checkpoint(record.checkpoints)


def checkpoints_of(record: RunRecord) -> list[Path]:
    """All checkpoints of a run; where its metric's name makes a folder, also those within."""
    noted = noted_checkpoints(record.directory)
    return [*record.checkpoints.rglob("*.ckpt"), *(path for path in (*noted["last"], *noted["best"]) if path.exists())]


def best_checkpoint(directory: Path) -> Path | None:
    """The best checkpoint of a directory whose run has not noted it, or null: the newest one knows which it is."""
    kept = list(directory.glob("best-*.ckpt"))
    latest = newest(last_checkpoints(directory)) or newest(directory.rglob("*.ckpt"))
    if len(kept) == 1 or latest is None:
        return newest(kept)
    import torch

    try:
        callbacks = torch.load(latest, map_location="cpu", weights_only=True, mmap=True).get("callbacks", {})
    except Exception:  # a damaged file fails in many ways, and another one may be whole
        return newest(kept)
    for name, state in callbacks.items():
        if name.startswith(("BestCheckpoint", "ModelCheckpoint")) and state.get("monitor"):
            path = Path(state.get("best_model_path", ""))
            folder = Path(state.get("dirpath") or path.parent)
            # The directory may have been moved since.
            moved = directory / (path.relative_to(folder) if path.is_relative_to(folder) else path.name)
            for candidate in (path, moved):
                if candidate.is_file() or holds_shards(candidate):
                    return candidate
    return newest(kept)


def last_checkpoints(directory: Path) -> list[Path]:
    """The last.ckpt of a directory, and its last-v1.ckpt and so on, if any."""
    return [*directory.glob("last.ckpt"), *directory.glob("last-v*.ckpt")]


def newest(paths: Iterable[Path]) -> Path | None:
    """The file written last, or null."""
    return max((path for path in paths if path.exists()), key=lambda path: path.stat().st_mtime_ns, default=None)


def run_directory_of_checkpoint(checkpoint: Path) -> Path | None:
    """The directory of the run that wrote a checkpoint; null for a copy that lies where the run keeps none."""
    checkpoint = checkpoint.expanduser().resolve()
    for directory in checkpoint.parents:
        if (directory / RUN_FILE_NAME).is_file():
            return directory
    if not checkpoint.exists():
        return None
    import torch

    try:
        run = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get(RUN_KEY, {})
    except Exception:  # nothing that any run has written
        return None
    for directory in [Path(run.get("directory", "")), *(record.directory for record in list_runs())]:
        path = directory / RUN_FILE_NAME
        if run and path.is_file() and read_run_file(path).run_id == run["run_id"]:
            folders = noted_checkpoints(directory)["folders"]
            return directory if any(checkpoint.is_relative_to(folder.resolve()) for folder in folders) else None
    return None


def _listing(records: list[RunRecord], limit: int = 6) -> str:
    names = ", ".join(f"{record.run_id[:8]} ({record.experiment}/{record.run_name})" for record in records[:limit])
    return names + (f" and {len(records) - limit} more" if len(records) > limit else "")
