"""What came out, when a training or a measurement ends: figures beside those of no learning, and what to type next."""

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lit_pretrain.callbacks.measurement import Measurement
from lit_pretrain.callbacks.progress import total_steps
from lit_pretrain.comparison.next_commands import PROGRAM, next_commands
from lit_pretrain.comparison.runs import Run
from lit_pretrain.errors import without_credentials
from lit_pretrain.tracking.find import RunRecord, holds_shards, list_runs, read_run_file
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.paths import RUN_FILE_NAME, resolve_runs_directory, shown_path
from lit_pretrain.tracking.run_record import (
    RunRecorder,
    keeper_of_best,
    keeper_of_last,
    mlflow_logger,
    run_directory,
)
from lit_pretrain.trainer_state import callbacks_of, data_module_of

if TYPE_CHECKING:
    from rich.table import Table

STAGES = ("validation", "test", "train")
# Commands that read MLflow's store.
OF_MLFLOW = ("put it beside others", "register it, to be served", "see what it started from", "look at all runs")
# What a person types next at most.
COMMANDS = 4
# In the place of a chance that there is none of, or that nothing tells; no terminal lacks it.
UNKNOWN = "-"


def figures_table(
    trainer: Trainer, module: LightningModule, title: str | None, training: bool = True
) -> "Table | None":
    """Figures by stage: the last value, the best one with its step, and what no learning gives, a dash where nothing
    tells it; null without any figure.

    Args:
        trainer: That has ended.
        module: Which knows what no learning gives.
        title: Above the table; null for none.
        training: Whether values have changed over steps.
    """
    from rich import get_console
    from rich.measure import Measurement as Width

    rows = rows_of(trainer, training)
    if not rows:
        return None
    console = get_console()
    table = table_of(trainer, module, title, training, rows, "/")
    if Width.get(console, console.options.update(max_width=1000), table).maximum > console.width:
        # Better than in the midst of a word.
        table = table_of(trainer, module, title, training, rows, "/\n    ")
    return table


def table_of(
    trainer: Trainer, module: LightningModule, title: str | None, training: bool, rows: dict[str, float], slash: str
) -> "Table":
    """As `figures_table`, of these figures.

    Args:
        trainer: As there.
        module: As there.
        title: As there.
        training: As there.
        rows: From `rows_of`.
        slash: What stands between a figure's objective and its name.
    """
    from rich import box
    from rich.table import Table

    recorder = recorder_of(trainer)
    best, steps = (recorder.best, recorder.best_steps) if recorder is not None and training else ({}, {})
    known = chance_of(trainer, module)
    chances = {name: known.get(name, known.get(name.partition("/")[2])) for name in rows}
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("", overflow="fold")
    table.add_column("last" if training else "value", justify="right")
    if best:
        table.add_column("best", justify="right")
        table.add_column("at step", justify="right")
    shows_chance = any(value is not None for value in chances.values())
    if shows_chance:
        table.add_column("chance", justify="right")
    stage = ""
    for name, value in rows.items():
        first, _, short = name.partition("/")
        if stage != first:
            table.add_row(first)
            stage = first
        cells = [f"  {short.replace('/', slash)}", shown(value)]
        if best:
            cells += [shown(best[name]), f"{steps[name]:,}" if name in steps else ""] if name in best else ["", ""]
        if shows_chance:
            cells.append(UNKNOWN if (chance := chances[name]) is None else shown(chance))
        table.add_row(*cells)
    return table


def recorder_of(trainer: Trainer) -> RunRecorder | None:
    """The callback that has written down what the run is, or null."""
    return next((callback for callback in callbacks_of(trainer) if isinstance(callback, RunRecorder)), None)


def rows_of(trainer: Trainer, training: bool = True) -> dict[str, float]:
    """The metrics worth a line, those of validation first, each once; of training the losses where there are others.

    Args:
        trainer: That has ended.
        training: Whether it has trained.
    """
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    # self.log(on_step=True, on_epoch=True) leaves three of each.
    names = [name for name in metrics if not name.endswith(("_step", "_epoch")) and "/" in name]
    # An accuracy for each class is for MLflow's page.
    names = [name for name in names if not name.rpartition("/")[2].startswith("accuracy_")]
    # What is chance itself stands beside what it is the chance of.
    names = [name for name in names if not name.startswith("learning_rate/") and not name.endswith("/chance")]
    if not training:
        names = [name for name in names if not name.startswith("train/")]
    elif any(name.startswith("validation/") for name in names):
        names = [name for name in names if not name.startswith("train/") or name == "train/loss"]
    order = {stage: place for place, stage in enumerate(STAGES)}
    # What is of no stage, as of probes, stands between the two.
    names.sort(key=lambda name: (order.get(name.split("/")[0], 1.5), name.split("/")[0], name.count("/"), name))
    return {name: metrics[name] for name in names}


def chance_of(trainer: Trainer, module: LightningModule) -> dict[str, float]:
    """What figures are without learning: the module's by their names without the stage, those of callbacks by their
    whole names; empty if none says.
    """
    sources = [module, *(callback for callback in callbacks_of(trainer) if isinstance(callback, Measurement))]
    found: dict[str, float] = {}
    for source in sources:
        chance = getattr(source, "chance", None)
        found |= chance() if callable(chance) else {}
    return found


def shown(value: float) -> str:
    """A figure in four digits, large ones whole."""
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e9 else f"{value:.4g}"


def ending(trainer: Trainer) -> str:
    """How far the training came, and what ended it if that was not its last step."""
    steps, total = trainer.global_step, total_steps(trainer)
    if math.isfinite(total) and steps < total:
        reason = "early"
        for callback in callbacks_of(trainer):
            if isinstance(callback, Timer) and (callback.time_remaining() or 1.0) <= 0:
                reason = "by trainer.max_time"
            elif isinstance(callback, EarlyStopping) and callback.stopped_epoch:
                reason = f"by EarlyStopping ({callback.monitor} is no better)"
        return f"Stopped {reason} after {steps:,} of {total:,} steps"
    return f"After {steps:,} steps"


def closing_lines(trainer: Trainer, module: LightningModule) -> list[str]:
    """Where the checkpoints lie, where the figures are, and the commands that a person would type next."""
    lines = []
    best, last = keeper_of_best(trainer), keeper_of_last(trainer)
    if best is not None and best.best_model_path and Path(best.best_model_path).exists():
        lines.append(f"Best checkpoint: {shown_path(best.best_model_path)}")
    if last is not None and last.last_model_path and Path(last.last_model_path).exists():
        lines.append(f"Last checkpoint: {shown_path(last.last_model_path)}")
    lines += [f"Look at the run: {way}" for way in ways_to_look(trainer)]
    record = record_of(trainer)
    if record is None or not lines:
        return lines
    if math.isfinite(total := total_steps(trainer)) and trainer.global_step < total:
        lines.append(f"Go on: {going_on(trainer)}")
    return lines + [f"{purpose.capitalize()}: {command}" for purpose, command in commands_of(trainer, module).items()]


def ways_to_look(trainer: Trainer) -> list[str]:
    """For each logger the command that shows its figures, or the file that has them."""
    ways = []
    for logger in trainer.loggers:
        if isinstance(logger, MLflowLogger):
            ways.append(view_command(logger))
        elif isinstance(logger, TensorBoardLogger):
            ways.append(f"tensorboard --logdir {shlex.quote(shown_path(logger.log_dir))}")
        elif isinstance(logger, CSVLogger):
            ways.append(shown_path(Path(logger.log_dir) / "metrics.csv"))
        elif isinstance(logger, WandbLogger):
            run = logger.experiment
            offline = bool(getattr(run, "offline", False) or not getattr(run, "url", None))
            folder = shlex.quote(shown_path(Path(str(run.dir)).parent))
            ways.append(f"wandb sync {folder}" if offline else str(run.url))
    return ways


def view_command(logger: MLflowLogger) -> str:
    """The command that opens the user interface on a run's store, or the run's address on a server."""
    if not logger.tracking_uri.startswith("sqlite"):
        address = without_credentials(logger.tracking_uri).rstrip("/")
        return f"{address}/#/experiments/{logger.experiment_id}/runs/{logger.run_id}"
    command = f"{PROGRAM} ui"
    if logger.runs_directory != resolve_runs_directory():
        command += f" --runs {shlex.quote(shown_path(logger.runs_directory))}"
    return command


def record_of(trainer: Trainer) -> RunRecord | None:
    """The run's record beside its files; null if nothing is kept of it."""
    directory = run_directory(trainer)
    if directory is None or not (directory / RUN_FILE_NAME).is_file():
        return None
    return read_run_file(directory / RUN_FILE_NAME)


def reference(record: RunRecord) -> str:
    """The shortest that a run can be called by in a command: its name, its id, or its directory."""
    known = [other for other in list_runs() if other.run_id == record.run_id]
    if not known:
        # Of another runs directory than that where commands look.
        return shlex.quote(shown_path(record.directory))
    alike = [other for other in list_runs() if other.run_name == record.run_name and other.run_id != record.run_id]
    return record.run_id[:8] if alike else shlex.quote(record.run_name)


def going_on(trainer: Trainer) -> str | None:
    """The command by which the training goes on, after whatever ended it; null if nothing is kept to go on from."""
    record, last = record_of(trainer), keeper_of_last(trainer)
    if last is None or not last.last_model_path or not Path(last.last_model_path).exists():
        return None
    named = reference(record) if record is not None else shlex.quote(shown_path(last.last_model_path))
    config = record is not None and (record.directory / "config.yaml").is_file()
    command = f"{PROGRAM} fit --ckpt_path {named}" if config else f"{PROGRAM} fit --config ... --ckpt_path {named}"
    timers = [timer for timer in callbacks_of(trainer) if isinstance(timer, Timer) and timer._duration is not None]
    if timers and (timers[0].time_remaining() or 1.0) <= 0:
        # It counts from the run's beginning.
        hours, seconds = divmod(round(2 * (timers[0]._duration or 0)), 3600)
        command += f" --trainer.max_time {hours // 24:02d}:{hours % 24:02d}:{seconds // 60:02d}:{seconds % 60:02d}"
    return command


def commands_of(trainer: Trainer, module: LightningModule) -> dict[str, str]:
    """What a person would type next, by what it does."""
    record = record_of(trainer)
    if record is None:
        return {}
    recorder = recorder_of(trainer)
    facts = dict(recorder.data_facts) if recorder is not None else {}
    for part, source in (("data_facts", data_module_of(trainer)), ("model_facts", module)):
        describe: Any = getattr(source, "describe", None)
        if callable(describe) and not (part == "data_facts" and facts):
            facts |= {f"{part}.{name}": value for name, value in describe().items()}
    best, last = keeper_of_best(trainer), keeper_of_last(trainer)
    checkpoint = best.best_model_path if best is not None else ""
    if not checkpoint and last is not None and holds_shards(last.last_model_path):
        checkpoint = last.last_model_path
    logged = mlflow_logger(trainer) is not None
    run = Run(
        run_id=record.run_id,
        name=record.run_name,
        experiment=record.experiment,
        status="FINISHED",
        started=0.0,
        ended=None,
        deleted=False,
        parameters={name: str(value) for name, value in facts.items()},
        tags={"model": type(module).__name__} | ({"checkpoint.best": checkpoint} if checkpoint else {}),
        metrics={},
    )
    # The way to look at it was told before.
    commands = next_commands(run, reference(record), None)
    left_out = {"look at all runs", *(() if logged else OF_MLFLOW)}
    chosen = {purpose: command for purpose, command in commands.items() if purpose not in left_out}
    return dict(list(chosen.items())[:COMMANDS])
