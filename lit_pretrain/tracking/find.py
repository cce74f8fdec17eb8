"""Finds runs and checkpoints by what a person calls them: an id, the beginning of one, a name, a path, "last"."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lit_pretrain.errors import UserError, nearest
from lit_pretrain.tracking.paths import RUN_FILE_NAME, resolve_runs_directory, safe_name, shown_path

CHECKPOINTS_NAME = "checkpoints"
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
    given = Path(reference)
    if (given / RUN_FILE_NAME).is_file():
        return read_run_file(given / RUN_FILE_NAME)
    records = list_runs(runs_directory)
    for found in (
        [record for record in records if record.run_id == reference],
        [record for record in records if reference in (record.run_name, record.directory.name)],
        [record for record in records if len(reference) >= SHORTEST_PREFIX and record.run_id.startswith(reference)],
    ):
        if with_checkpoints and len(found) > 1:
            found = [record for record in found if any(record.checkpoints.glob("*.ckpt"))] or found
        if len(found) > 1:
            found = [record for record in found if record.experiment == experiment] or found
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"'{reference}' fits {len(found)} runs: say which, by id: {_listing(found)}.")
    root = shown_path(resolve_runs_directory(runs_directory))
    if not records:
        raise UserError(f"There are no runs in {root}: train one, or set LIT_PRETRAIN_RUNS to where they are.")
    names = [name for record in records for name in (record.run_name, record.run_id)]
    raise UserError(f"No run in {root} is called '{reference}'{nearest(reference, names)}.")


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
    if path.is_file():
        return path.resolve()
    if reference == "last":
        found = newest(
            path for record in list_runs(runs_directory, experiment) for path in last_checkpoints(record.checkpoints)
        )
        if found is None:
            where = f"of experiment '{experiment}' in" if experiment else "in"
            raise UserError(
                f"There is no last.ckpt {where} {shown_path(resolve_runs_directory(runs_directory))} to go on from: "
                "train without --ckpt_path first, or name a checkpoint's path."
            )
        return found
    if path.suffix == ".ckpt" or len(path.parts) > 1 and not (path / RUN_FILE_NAME).is_file():
        siblings = [str(path.parent / other.name) for other in path.parent.glob("*.ckpt")]
        raise UserError(f"The checkpoint {reference} does not exist{nearest(reference, siblings)}.")
    name, _, which = reference.rpartition(":")
    best = bool(name) and which == "best"
    if best and name == "last":
        name = str(find_checkpoint("last", experiment, runs_directory).parent.parent)
    record = find_run(name if best else reference, runs_directory, experiment, with_checkpoints=True)
    if best:
        found = best_checkpoint(record.checkpoints)
    else:
        found = newest(last_checkpoints(record.checkpoints)) or newest(record.checkpoints.glob("*.ckpt"))
    if found is None:
        raise UserError(f"The run {record.run_name} has no checkpoint in {shown_path(record.checkpoints)}.")
    return found


def split_tower(reference: str) -> tuple[str, str | None]:
    """Take the name of a tower off a reference: "RUN:text", "RUN:best:vision" and "FILE:text" name one of two.

    Returns:
        The reference without it, and `text`, `vision` or null.
    """
    rest, _, tower = reference.rpartition(":")
    if not rest or tower not in TOWERS or Path(reference).expanduser().exists():
        return reference, None
    return rest, tower


def best_checkpoint(directory: Path) -> Path | None:
    """The best checkpoint of a directory, or null; where several are kept, the latest one knows which it is."""
    kept = list(directory.glob("best-*.ckpt"))
    last = newest(last_checkpoints(directory))
    if len(kept) > 1 and last is not None:
        import torch

        callbacks = torch.load(last, map_location="cpu", weights_only=True, mmap=True).get("callbacks", {})
        name = Path(callbacks.get("BestCheckpoint", {}).get("best_model_path", "")).name
        kept = [path for path in kept if path.name == name] or kept
    return newest(kept)


def last_checkpoints(directory: Path) -> list[Path]:
    """The last.ckpt of a directory, and its last-v1.ckpt and so on, if any."""
    return [*directory.glob("last.ckpt"), *directory.glob("last-v*.ckpt")]


def newest(paths: Iterable[Path]) -> Path | None:
    """The file written last, or null."""
    return max((path for path in paths if path.exists()), key=lambda path: path.stat().st_mtime_ns, default=None)


def run_directory_of_checkpoint(checkpoint: Path) -> Path | None:
    """The directory of the run that wrote a checkpoint, or null if it does not lie in one."""
    for directory in list(checkpoint.expanduser().resolve().parents)[:3]:
        if (directory / RUN_FILE_NAME).is_file():
            return directory
    return None


def _listing(records: list[RunRecord], limit: int = 6) -> str:
    shown = ", ".join(f"{record.run_id[:8]} ({record.experiment}/{record.run_name})" for record in records[:limit])
    return shown + (f" and {len(records) - limit} more" if len(records) > limit else "")
