"""What Lightning's Trainer knows but does not declare: its connectors set these attributes from outside, so that no
type checker sees them.
"""

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from lightning import Callback, Trainer


def callbacks_of(trainer: "Trainer") -> "list[Callback]":
    """The Trainer's own list of callbacks, in the order in which they are called."""
    state: Any = trainer
    return cast("list[Callback]", state.callbacks)


def data_module_of(trainer: "Trainer") -> Any:
    """The data module, of whatever class, or None where data loaders were given."""
    state: Any = trainer
    return state.datamodule


def is_fast_run(trainer: "Trainer") -> bool:
    """Whether a few batches only are run, to try the code (`fast_dev_run`)."""
    state: Any = trainer
    return bool(state.fast_dev_run)


def log_interval_of(trainer: "Trainer") -> int:
    """Optimiser steps between two reports (`log_every_n_steps`), 0 for none."""
    state: Any = trainer
    return cast(int, state.log_every_n_steps)


def overfit_batches_of(trainer: "Trainer") -> int | float:
    """Batches, or their share, that are to be learned by heart; 0 for none."""
    state: Any = trainer
    return cast(float, state.overfit_batches)


def stage_of(trainer: "Trainer") -> str:
    """What the Trainer was called for: `fit`, `validate`, `test` or `predict`."""
    function = trainer.state.fn
    assert function is not None  # since the call
    return function.value


def set_root_directory(trainer: "Trainer", directory: str) -> None:
    """Let all that no logger keeps go to another directory than the Trainer was made with."""
    state: Any = trainer
    state._default_root_dir = directory
