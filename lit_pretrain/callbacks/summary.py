"""The first and the last a person sees of a training: what is trained; its metrics, checkpoints, and how to look on."""

import shlex
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_pretrain.errors import without_credentials
from lit_pretrain.modules.optimization import count_elements
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.paths import resolve_runs_directory, shown_path
from lit_pretrain.tracking.run_record import RunRecorder, keeper_of_best, keeper_of_last, mlflow_logger, run_directory
from lit_pretrain.trainer_state import callbacks_of, is_fast_run


class Summary(Callback):
    """Prints a line before `fit` and a table of final and best metrics after it, on rank zero."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is trained, with which precision, where its files will lie."""
        if self.is_silent(trainer):
            return
        from rich import get_console

        parameters = count_elements(pl_module.parameters())
        where = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
        line = f"{type(pl_module).__name__} of {parameters:,} parameters on {where}, {trainer.precision}"
        if trainer.global_step:
            line += f", from step {trainer.global_step:,} on"
        logger = mlflow_logger(trainer)
        if logger is not None:
            line += f"; run {logger.run_name} in {shown_path(logger.run_directory)}"
        elif (directory := run_directory(trainer)) is not None:
            line += f"; run in {shown_path(directory)}"
        get_console().print(line, soft_wrap=True, markup=False, highlight=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        if self.is_silent(trainer):
            return
        from rich import box, get_console
        from rich.table import Table

        bar = trainer.progress_bar_callback
        if bar is not None and hasattr(bar, "_stop_progress"):
            bar._stop_progress()
        console = get_console()
        best = next((callback.best for callback in callbacks_of(trainer) if isinstance(callback, RunRecorder)), {})
        table = Table(box=box.SIMPLE_HEAD, title=f"After {trainer.global_step:,} steps", title_justify="left")
        table.add_column("metric")
        table.add_column("last", justify="right")
        table.add_column("best", justify="right")
        for name, value in self.rows(trainer).items():
            table.add_row(name, f"{value:.4g}", f"{best[name]:.4g}" if name in best else "")
        if table.row_count:
            console.print(table)
        for line in self.lines(trainer):
            # One line each, whatever the width: a person copies them.
            console.print(line, soft_wrap=True, markup=False, highlight=False)

    @staticmethod
    def is_silent(trainer: Trainer) -> bool:
        """Whether nothing is printed: another process does, or nothing is kept."""
        return not trainer.is_global_zero or bool(is_fast_run(trainer))

    @staticmethod
    def rows(trainer: Trainer) -> dict[str, float]:
        """The metrics worth a line: validation first, then training, each once."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        # self.log(on_step=True, on_epoch=True) leaves three of each.
        names = [name for name in metrics if not name.endswith(("_step", "_epoch")) and "/" in name]
        order = {"validation": 0, "train": 1}
        names.sort(key=lambda name: (order.get(name.split("/")[0], 2), name.count("/"), name))
        return {name: metrics[name] for name in names}

    @staticmethod
    def lines(trainer: Trainer) -> list[str]:
        """Where the checkpoint lies, and the command that opens the run."""
        lines = []
        best, last = keeper_of_best(trainer), keeper_of_last(trainer)
        if best is not None and best.best_model_path and Path(best.best_model_path).exists():
            lines.append(f"Best checkpoint: {shown_path(best.best_model_path)}")
        if last is not None and last.last_model_path and Path(last.last_model_path).exists():
            lines.append(f"Last checkpoint: {shown_path(last.last_model_path)}")
        logger = mlflow_logger(trainer)
        if logger is not None:
            lines.append(f"Look at the run: {view_command(logger)}")
        return lines


def view_command(logger: MLflowLogger) -> str:
    """The command that opens the user interface on a run's store, or the run's address on a server."""
    if not logger.tracking_uri.startswith("sqlite"):
        address = without_credentials(logger.tracking_uri).rstrip("/")
        return f"{address}/#/experiments/{logger.experiment_id}/runs/{logger.run_id}"
    command = "python -m lit_pretrain ui"
    if logger.runs_directory != resolve_runs_directory():
        command += f" --runs {shlex.quote(shown_path(logger.runs_directory))}"
    return command
