"""The first and the last a person sees of a training: what is trained and for how long; figures and what to do next."""

import re
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_pretrain.callbacks.end_page import closing_lines, ending, figures_table, going_on, ways_to_look
from lit_pretrain.callbacks.interruption import Interrupted
from lit_pretrain.callbacks.progress import end_bar
from lit_pretrain.callbacks.remaining_time import RemainingTime
from lit_pretrain.callbacks.start_page import start_page
from lit_pretrain.comparison.next_commands import PROGRAM
from lit_pretrain.tracking.paths import shown_path
from lit_pretrain.trainer_state import is_fast_run


def folded(line: str, width: int) -> str:
    """A line over several ones where it is longer than the terminal is wide, so that what is copied is whole.

    Args:
        line: What a path or a command is, a colon, and the path or the command, which a shell takes over lines too.
        width: Characters.
    """
    purpose, colon, command = line.partition(": ")
    if len(line) <= width or not colon:
        return line
    if not command.startswith(PROGRAM):
        return f"{purpose}:\n  {command}"
    lines: list[str] = []
    # Quoted texts may have what looks like an option.
    for part in re.split(r""" (?=--[a-z](?:[^"']*(?:"[^"]*"|'[^']*'))*[^"']*$)""", command):
        if lines and len(f"    {lines[-1]} {part} ") < width:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    return f"{purpose}:\n  " + " \\\n    ".join(lines)


class Summary(Callback):
    """Prints a few lines before `fit`, how long it will take after its first steps, and figures and commands at its
    end, and a table of figures after `validate` and `test`; on rank zero.
    """

    def __init__(self) -> None:
        self._remaining = RemainingTime()
        self._trained = False
        self._optimizer_step = -1

    # -- the start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is trained, with which precision, where its files will lie."""
        self._trained, self._optimizer_step = False, trainer.global_step
        self._remaining.begin()
        if not self.is_silent(trainer):
            self._say(start_page(trainer, pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say how long it will take, once that is known."""
        self._trained = True
        if trainer.global_step == self._optimizer_step or self.is_silent(trainer):
            return
        self._optimizer_step = trainer.global_step
        line = self._remaining.step_ends(trainer)
        if line is not None:
            self._say([line])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation between two steps is none of theirs."""
        self._remaining.disturbed()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Nor is a checkpoint."""
        self._remaining.disturbed()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Measure how long a batch of a validation takes."""
        self._remaining.validation_batch_begins()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """It is done."""
        self._remaining.validation_batch_ends()

    # -- the end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print figures and commands."""
        if self.is_silent(trainer):
            return
        end_bar(trainer)
        self._show(figures_table(trainer, pl_module, ending(trainer)), ending(trainer))
        self._say(closing_lines(trainer, pl_module))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what was measured."""
        self._show_measured(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what was measured, unless it is a training's."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._show_measured(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Add the command by which a training that has failed goes on; an interrupted one has said it."""
        if not self._trained or not trainer.is_global_zero or isinstance(exception, Interrupted | KeyboardInterrupt):
            return
        command = None if is_fast_run(trainer) else going_on(trainer)
        if command is not None:
            exception.add_note(f"Go on from the last checkpoint: {command}")

    def _show_measured(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_silent(trainer):
            end_bar(trainer)
            measured = shown_path(trainer.ckpt_path) if trainer.ckpt_path else type(pl_module).__name__
            self._say([f"Measured {measured}"])
            self._show(figures_table(trainer, pl_module, None, training=False))
            self._say([f"Look at the run: {way}" for way in ways_to_look(trainer)])

    @staticmethod
    def _show(table: Any, otherwise: str | None = None) -> None:
        from rich import get_console

        if table is not None:
            get_console().print(table, highlight=False)
        elif otherwise is not None:
            Summary._say([f"{otherwise}."])

    @staticmethod
    def _say(lines: list[str]) -> None:
        from rich import get_console

        console = get_console()
        for line in lines:
            # What is copied out of a terminal is a command still; a pipe gets one line each.
            text = folded(line, console.width) if console.is_terminal else line
            console.print(text, soft_wrap=True, markup=False, highlight=False)

    @staticmethod
    def is_silent(trainer: Trainer) -> bool:
        """Whether nothing is printed: another process does, or nothing is kept."""
        return not trainer.is_global_zero or bool(is_fast_run(trainer))
