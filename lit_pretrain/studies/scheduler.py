"""Does a study's cells: finished ones are not repeated, failed ones are told and left, Ctrl-C stops all in order."""

import contextlib
import json
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError, nearest
from lit_pretrain.required import required
from lit_pretrain.studies import processes
from lit_pretrain.studies.cells import DONE, Cell, CellStore, Outcome
from lit_pretrain.studies.record import StudyRecord
from lit_pretrain.studies.settings import StudySettings
from lit_pretrain.tracking.paths import shown_path, write_atomically

Say = Callable[[str], None]
# How often a training is begun anew whose machine is gone.
RESTARTS = 3


class Runner:
    """Trains cells in processes of their own.

    Args:
        settings: The study's.
        record: Its run and directory.
        engine: What they run on: a `processes.Machine`, or a `cluster.Cluster`.
        say: Told a line for each cell.
    """

    def __init__(self, settings: StudySettings, record: StudyRecord, engine: Any, say: Say) -> None:
        self.settings, self.record, self.engine, self.say = settings, record, engine, say
        self.store = CellStore(required(record.directory), settings.metric)
        self.total = self.done = 0
        self._restarts: dict[str, int] = {}

    def run(self, cells: Sequence[Cell]) -> None:
        """Do all cells that are not done; returns when none is going on any more.

        Raises:
            KeyboardInterrupt: If a person or a system stopped it; the cells have been stopped in order.
        """
        waiting = [cell for cell in cells if not self.store.is_done(cell)]
        self.done += len(cells) - len(waiting)
        waiting = [cell for cell in waiting if not self._take(cell)]
        going: dict[Any, tuple[Cell, float]] = {}
        with terminate_as_interrupt():
            try:
                while waiting or going:
                    while waiting and len(going) < self.engine.most:
                        cell = waiting.pop(0)
                        going[self._start(cell)] = cell, time.monotonic()
                    for process in self.engine.wait(list(going)):
                        cell, started = going.pop(process)
                        if self._goes_on(cell, process):
                            going[self._start(cell, again=True)] = cell, started
                        else:
                            self._finish(cell, process, time.monotonic() - started)
            except KeyboardInterrupt:
                self._stop(going)
                raise

    def _take(self, cell: Cell) -> bool:
        """Take what the same cell came to in another study, whose run and files stay as they are; whether it has."""
        # Checkpoints that are to be kept are this study's own.
        outcome = None if self.settings.keep_checkpoints else self.store.shared(cell)
        if outcome is None:
            return False
        self.store.directory.mkdir(parents=True, exist_ok=True)
        self.store.write(cell.hash, outcome)
        self.done += 1
        value = outcome.metrics[self.settings.metric]
        self.say(f"{self._count()}{cell.name}: {self.settings.metric} {value:.4g}, from the study {outcome.study}")
        return True

    def _count(self) -> str:
        return f"[{self.done}/{self.total}] " if self.total else ""

    def _goes_on(self, cell: Cell, process: Any) -> bool:
        """Whether a training is begun anew because its machine is gone with it."""
        lost = getattr(process, "lost", "")
        if not lost or self.store.is_done(cell) or self._restarts.get(cell.hash, 0) >= RESTARTS:
            return False
        self._restarts[cell.hash] = self._restarts.get(cell.hash, 0) + 1
        self.say(f"{cell.name}: {lost}; it goes on elsewhere.")
        return True

    def _start(self, cell: Cell, again: bool = False) -> Any:
        configs = self._write_configs(cell)
        job = {
            "fit": str(configs[0]),
            "test": str(configs[1]) if cell.stage == "test" else None,
            "checkpoint": cell.checkpoint,
            "experiment": self.record.experiment,
            "tracking_uri": self.record.tracking_uri,
            "runs_directory": str(self.record.runs_directory),
            "study_run": self.record.run_id,
            "metric": self.settings.metric,
            "validation_metric": self.settings.validation_metric,
            "keep_checkpoints": self.settings.keep_checkpoints,
            "threads": self.engine.threads,
            "jobs": self.engine.at_a_time(cell.config),
        }
        if not again:
            # What came of an earlier try would be taken for this one's, should it be killed.
            self.store.outcome_path(cell.hash).unlink(missing_ok=True)
        place, log = str(self.record.directory), self.store.log_path(cell)
        return self.engine.start(train_cell, place, cell.hash, job, log=log, config=cell.config, name=cell.name)

    def _callbacks(self, cell: Cell) -> list[dict[str, Any]]:
        """Callbacks of a cell's training beside those of its config."""
        return []

    def _write_configs(self, cell: Cell) -> list[Path]:
        """Its config with a logger that makes its run a child of the study's; that of its test likewise."""
        paths = []
        for stage in ("fit", "test"):
            logger = {
                "experiment": self.record.experiment,
                "run_name": cell.name if stage == "fit" else f"{cell.name}, test",
                "tracking_uri": self.record.tracking_uri,
                "runs_directory": str(self.record.runs_directory),
                "tags": {
                    "mlflow.parentRunId": self.record.run_id,
                    "study.cell": cell.hash,
                    "study.stage": stage,
                    **{f"study.{key}": str(value) for key, value in cell.labels.items() if value is not None},
                },
            }
            trainer = cell.config["trainer"] | {
                "logger": {"class_path": "MLflowLogger", "init_args": logger},
                "enable_progress_bar": False,
            }
            if added := self._callbacks(cell):
                given = trainer.get("callbacks") or []
                trainer["callbacks"] = [*(given if isinstance(given, list) else [given]), *added]
            path = self.store.config_path(cell, stage)
            # JSON is YAML with every text in quotes: 1e+30 is a text to PyYAML and a number to jsonargparse.
            write_atomically(path, json.dumps(cell.config | {"trainer": trainer}, indent=2))
            paths.append(path)
        return paths

    def _finish(self, cell: Cell, process: Any, seconds: float) -> None:
        """Tell how a cell ended; what its process could not write down is written here."""
        outcome = self._outcome(cell, process)
        # In a cluster it may have waited for its turn.
        seconds = getattr(process, "seconds", None) or seconds
        self.done += 1
        count = self._count()
        if outcome.status == "finished":
            value = outcome.metrics.get(self.settings.metric, float("nan"))
            self.say(f"{count}{cell.name}: {self.settings.metric} {value:.4g} in {duration(seconds)}")
        else:
            self.say(f"{count}{cell.name}: {outcome.status}: {outcome.reason}")

    def _outcome(self, cell: Cell, process: Any) -> Outcome:
        """What came of a cell whose process has ended."""
        process.join()
        outcome = self.store.outcome(cell)
        if outcome is None:
            ended = f"its process ended with {processes.describe_exit(process.exitcode)}"
            reason = getattr(process, "lost", "") or getattr(process, "reason", "") or ended
            outcome = Outcome("failed", f"{reason}; see {shown_path(self.store.log_path(cell))}")
            self.store.write(cell.hash, outcome)
        return outcome

    def _stop(self, going: dict[Any, tuple[Cell, float]]) -> None:
        """Let the trainings finish their step and save; a second Ctrl-C ends them at once."""
        if going:
            self.say(f"Stopping {len(going)} training(s) after their step; press Ctrl-C again to stop at once.")
        try:
            for process in going:
                process.terminate()
            for process in going:
                process.join()
        except KeyboardInterrupt:
            for process in going:
                process.kill()


def train_cell(directory: str, cell_hash: str, job: dict[str, Any]) -> None:
    """As `training.train_cell`, which is imported where it runs, with torch."""
    from lit_pretrain.studies import training

    training.train_cell(directory, cell_hash, job)


def rehearsed(settings: StudySettings, store: CellStore, cell: Cell, say: Say, engine: Any) -> dict[str, Any]:
    """One step of a cell, once: does it run, what does it log and cost?

    Args:
        settings: The study's.
        store: Where what was found is kept.
        cell: Which.
        say: Told a line before.
        engine: As of a `Runner`.

    Raises:
        UserError: If it does not run, or does not log the study's metric.
    """
    path = store.rehearsal_path(cell)
    if store.rehearsal(cell) is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        say(f"Rehearsing one step of {cell.name} ...")
        try:
            log = path.with_suffix(".log")
            engine.call(rehearse, cell.config, str(path), log=log, config=cell.config, name=cell.name)
        except UserError as error:
            raise UserError(f"{cell.name}: {error}") from error
        except RuntimeError as error:
            where = shown_path(path.with_suffix(".log"))
            raise UserError(f"{cell.name} breaks at its first step ({error}): see {where}.") from error
    facts = required(store.rehearsal(cell))
    names = [name for name in facts["metrics"] if name.startswith("validation/")]
    metric = settings.validation_metric
    if metric not in names:
        raise UserError(
            f"{cell.name} does not log {metric}{nearest(metric, names)}: set metric to one of "
            f"{', '.join(names) or 'none, since it has no validation data'}."
        )
    return facts


def rehearse(config: dict[str, Any], path: str) -> None:
    """As `rehearsal.rehearse`, likewise."""
    from lit_pretrain.studies import rehearsal

    rehearsal.rehearse(config, path)


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the study as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        # Not in the main thread.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def estimate(cells: Sequence[Cell], store: CellStore) -> tuple[int, float | None]:
    """What is left to do, from what finished cells took.

    Cells that were trained at a time shared the processors, so that one of them took about its seconds divided by
    their number of the machine; more of them at a time do not make it faster.

    Returns:
        Number of cells, and the seconds that all of them take of the machine; None if nothing has finished yet.
    """
    remaining = [cell for cell in cells if not store.is_done(cell)]
    durations = []
    for cell in cells:
        outcome = store.outcome(cell)
        if outcome is not None and outcome.status in DONE and outcome.seconds:
            durations.append((cell, outcome.seconds / outcome.jobs))
    if not durations:
        return len(remaining), None if remaining else 0.0
    total = 0.0
    for cell in remaining:
        # Those that differ by the seed alone say most.
        alike = [duration for duration in durations if without_seed(duration[0]) == without_seed(cell)] or durations
        total += statistics.mean(seconds / abs(similar.steps) for similar, seconds in alike) * abs(cell.steps)
    return len(remaining), total


def without_seed(cell: Cell) -> dict[str, Any]:
    """What a cell is, but for its seed and learning rate."""
    return {key: value for key, value in cell.labels.items() if key not in ("seed", "learning_rate")}


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
