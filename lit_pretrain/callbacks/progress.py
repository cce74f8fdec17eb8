"""The progress bar: step, time, loss, tokens or pictures a second; where there is no terminal, a line now and then.

Lightning's own reads every logged metric from the device at every batch and redraws a hundred times a second, which on
a small machine costs more than the logging. This one looks twice a second.
"""

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import MetricsTextColumn, ProcessingSpeedColumn

from lit_pretrain.callbacks.throughput import Throughput
from lit_pretrain.errors import check_number
from lit_pretrain.tracking.run_record import validates_training
from lit_pretrain.trainer_state import callbacks_of

# Characters of what stands beside the bar, and of the shortest bar.
WIDTH_OF_FIGURES, NARROWEST = 100, 6


class FittingFigures:
    """As many figures as a line has room for, the first ones first; half a number would be another one.

    Args:
        texts: The figures.
        delimiter: Between them.
        style: Of rich.
    """

    def __init__(self, texts: list[str], delimiter: str, style: Any) -> None:
        self.texts, self.delimiter, self.style = texts, delimiter, style

    def _line(self, width: int) -> str:
        lines = (self.delimiter.join(self.texts[:count]) for count in range(len(self.texts), 0, -1))
        return next((line for line in lines if len(line) <= width), "")

    def __rich_measure__(self, console: Any, options: Any) -> Any:
        """From none to all."""
        from rich.measure import Measurement

        return Measurement(0, min(len(self._line(10**6)), options.max_width))

    def __rich_console__(self, console: Any, options: Any) -> Any:
        """One line."""
        from rich.text import Text

        yield Text(self._line(options.max_width), style=self.style, no_wrap=True)


class FiguresColumn(MetricsTextColumn):
    """Lightning's column of figures, which folds a long line into several, in one line."""

    def render(self, task: Any) -> Any:
        """The figures, beside the bar of the training."""
        text = super().render(task)
        return FittingFigures(list(self._generate_metrics_texts()), self._text_delimiter, self._style) if text else text


class ProgressBar(RichProgressBar):
    """Rich's bar with loss and tokens a second; lines of text when the output is a file or a pipe.

    Args:
        refresh_rate: Redraws a second; 0 shows nothing.
        lines: About how many lines a whole training writes where there is no terminal.
        line_seconds: Seconds at least between two such lines.
    """

    def __init__(self, refresh_rate: int = 2, lines: int = 20, line_seconds: float = 10.0) -> None:
        check_number("ProgressBar.refresh_rate", refresh_rate, least=0)
        check_number("ProgressBar.lines", lines, least=1)
        check_number("ProgressBar.line_seconds", line_seconds, least=0)
        super().__init__(refresh_rate=refresh_rate, leave=False)
        self.lines = lines
        self.line_seconds = line_seconds
        self._looked_at = 0.0
        self._started_at = 0.0
        self._line_at = 0.0
        self._line_step = 0
        self._first_step = 0

    @property
    def in_terminal(self) -> bool:
        """Whether the output can be redrawn."""
        from rich import get_console

        console = get_console()
        return console.is_terminal or console.is_jupyter

    # -- numbers

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Loss of training and validation and tokens or samples a second; what the module marks with prog_bar too."""
        metrics = {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
        for name, key in (("loss", "train/loss"), ("validation", "validation/loss")):
            if key in trainer.callback_metrics:
                metrics.pop(key, None)
                metrics[name] = f"{float(trainer.callback_metrics[key]):.3f}"
        clock = getattr(pl_module, "clock", None)
        if clock is not None and clock.budget is not None:
            metrics["of the time"] = f"{clock.share:.0%}"
        throughput = next((callback for callback in callbacks_of(trainer) if isinstance(callback, Throughput)), None)
        if throughput is not None and throughput.tokens_per_second:
            metrics["tokens/s"] = f"{throughput.tokens_per_second:,.0f}"
        elif throughput is not None and throughput.samples_per_second:
            metrics["samples/s"] = f"{throughput.samples_per_second:,.0f}"
        return metrics

    def _update_metrics(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.monotonic()
        if self._metric_component is not None and now - self._looked_at >= 0.5:
            self._looked_at = now
            super()._update_metrics(trainer, pl_module)

    @property
    def total_train_batches(self) -> int | float:
        """Batches of this epoch, or those left until max_steps if they are fewer."""
        batches, trainer = super().total_train_batches, self.trainer
        if trainer.max_steps is None or trainer.max_steps < 0:
            return batches
        remaining = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
        return min(batches, trainer.fit_loop.epoch_loop.batch_progress.current.completed + max(remaining, 0))

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """As Lightning's, with a bar that leaves the figures room in a line of 80 characters."""
        from rich import get_console
        from rich.progress import BarColumn

        columns, width = super().configure_columns(trainer), get_console().width
        if width < WIDTH_OF_FIGURES:
            # The time that is left says as much, and the losses need the room.
            columns = [column for column in columns if not isinstance(column, ProcessingSpeedColumn)]
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = max(NARROWEST, min(40, width - WIDTH_OF_FIGURES))
        return columns

    def _get_train_description(self, current_epoch: int) -> str:
        """As Lightning's, but without the number of epochs where steps or time end the training."""
        epochs = self.trainer.max_epochs
        of = f"/{epochs - 1}" if epochs is not None and epochs > 0 else ""
        # As long as the other descriptions, so that nothing moves.
        return f"Epoch {current_epoch}{of}".ljust(len(self.validation_description))

    # -- without a terminal

    def _init_progress(self, trainer: Trainer) -> None:
        if not self.in_terminal:
            return
        super()._init_progress(trainer)
        if self.progress is not None and type(self._metric_component) is MetricsTextColumn:
            column = FiguresColumn(
                trainer, self.theme.metrics, self.theme.metrics_text_delimiter, self.theme.metrics_format
            )
            self.progress.columns = (*self.progress.columns[:-1], column)
            self._metric_component = column

    def _add_task(self, total_batches: int | float, description: str, visible: bool = True) -> Any:
        return super()._add_task(total_batches, description, visible) if self.progress is not None else None

    def _say(self, text: str) -> None:
        print(text, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar, or the lines."""
        super().on_train_start(trainer, pl_module)
        self._started_at = self._line_at = time.monotonic()
        self._line_step = self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar on, or write a line if it is time."""
        if self.is_disabled:
            return
        if self.progress is not None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            return
        now, step = time.monotonic(), trainer.global_step
        total = total_steps(trainer)
        every = max(1, (total - self._first_step) // self.lines) if math.isfinite(total) else 1
        # Without a known end the lines grow rarer, so that a week leaves no more of them than a day.
        patience = self.line_seconds if math.isfinite(total) else max(self.line_seconds, (now - self._started_at) / 20)
        if now - self._line_at >= patience and step - self._line_step >= every:
            self._line_at, self._line_step = now, step
            self._say(self._line(trainer, pl_module, now))

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the validation's bar."""
        if self.progress is not None:
            super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hide the validation's bar."""
        if self.progress is not None:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the new validation loss at once."""
        self._looked_at = 0.0
        super().on_validation_end(trainer, pl_module)
        if self.is_enabled and self.progress is None and validates_training(trainer):
            now = time.monotonic()
            if now - self._line_at >= self.line_seconds:
                self._line_at, self._line_step = now, trainer.global_step
                self._say(self._line(trainer, pl_module, now))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar, or the lines."""
        super().on_test_start(trainer, pl_module)
        self._start_reading()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar, or the lines."""
        super().on_predict_start(trainer, pl_module)
        self._start_reading()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar on, or write a line if it is time."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._say_batch("test", batch_idx + 1, trainer.num_test_batches[dataloader_idx])

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar on, or write a line if it is time."""
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._say_batch("predict", batch_idx + 1, trainer.num_predict_batches[dataloader_idx])

    def _start_reading(self) -> None:
        """Count from here what is read without training."""
        self._started_at = self._line_at = time.monotonic()
        self._line_step = 0

    def _say_batch(self, stage: str, batch: int, total: int | float) -> None:
        """Write how many batches are read, if there is no terminal and it is time."""
        if self.is_disabled or self.progress is not None:
            return
        now, every = time.monotonic(), max(1, total // self.lines) if math.isfinite(total) else 1
        if now - self._line_at >= self.line_seconds and batch - self._line_step >= every:
            self._line_at, self._line_step = now, batch
            of = f"/{total:,}" if math.isfinite(total) else ""
            minutes, seconds = divmod(int(now - self._started_at), 60)
            self._say(f"{stage} batch {batch:,}{of}  {minutes}:{seconds:02d}")

    def _line(self, trainer: Trainer, pl_module: LightningModule, now: float) -> str:
        total = total_steps(trainer)
        of = f"/{total:,}" if math.isfinite(total) else ""
        minutes, seconds = divmod(int(now - self._started_at), 60)
        metrics = "  ".join(
            f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.get_metrics(trainer, pl_module).items()
        )
        return f"step {trainer.global_step:,}{of}  {minutes}:{seconds:02d}  {metrics}".rstrip()


def end_bar(trainer: Trainer) -> None:
    """Stop drawing the bar, so that what is said next stands below it."""
    bar = trainer.progress_bar_callback
    if bar is not None and hasattr(bar, "_stop_progress"):
        bar._stop_progress()


def total_steps(trainer: Trainer) -> int | float:
    """Optimiser steps of the whole training, infinite if nobody knows; never touches the trainer's loaders."""
    steps = trainer.max_steps if trainer.max_steps is not None and trainer.max_steps >= 0 else math.inf
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if epochs is not None and epochs >= 0 and math.isfinite(batches):
        steps = min(steps, math.ceil(batches / trainer.accumulate_grad_batches) * epochs)
    return steps
