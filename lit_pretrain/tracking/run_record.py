"""Writes down what a run is: code, versions, machine, model, data, best metrics, and how it ended."""

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.best import direction, is_better
from lit_pretrain.tracking.data_inputs import CONTEXTS, DataInput, data_inputs
from lit_pretrain.tracking.find import (
    CHECKPOINTS_NAME,
    RUN_KEY,
    SHARDS,
    holds_shards,
    note_checkpoints,
    read_run_file,
    run_directory_of_checkpoint,
)
from lit_pretrain.tracking.local_run import LocalRun, begin_local_run
from lit_pretrain.tracking.machine import git_state, machine_description, package_versions
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.other_loggers import RunFiles, lacks_place, log_facts, place
from lit_pretrain.tracking.paths import RUN_FILE_NAME
from lit_pretrain.tracking.slurm import write_job
from lit_pretrain.tracking.writer import first_line
from lit_pretrain.trainer_state import callbacks_of, data_module_of, is_fast_run, set_root_directory, stage_of

# What a checkpoint waits for a store that hangs; what it has not taken by then goes to the journal.
SECONDS_TO_FLUSH = 5.0


def mlflow_logger(trainer: Trainer) -> MLflowLogger | None:
    """The trainer's MLflow logger, or null if it logs elsewhere or nowhere (fast_dev_run)."""
    return next((logger for logger in trainer.loggers if isinstance(logger, MLflowLogger)), None)


def writing_logger(trainer: Trainer) -> MLflowLogger | None:
    """The trainer's MLflow logger in the one process that writes, rank zero's; null in all others, or without one."""
    return mlflow_logger(trainer) if trainer.is_global_zero else None


def validates_training(trainer: Trainer) -> bool:
    """Whether a validation is one of a training: neither the check before it, nor asked for by itself."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def run_directory(trainer: Trainer) -> Path | None:
    """The directory of the trainer's run, MLflow's or a local one; null where none is kept, as of fast_dev_run."""
    logger = mlflow_logger(trainer)
    if logger is not None:
        return logger.run_directory
    recorder = next((callback for callback in callbacks_of(trainer) if isinstance(callback, RunRecorder)), None)
    return recorder.local.directory if recorder is not None and recorder.local is not None else None


def run_files(trainer: Trainer) -> MLflowLogger | RunFiles | None:
    """What keeps tables and pictures of the run; the same on all ranks, and to be written to by rank zero.

    Null where nothing is logged (`logger: false`, fast_dev_run).
    """
    logger = mlflow_logger(trainer)
    if logger is not None or not trainer.loggers or is_fast_run(trainer):
        return logger
    directory = run_directory(trainer)
    if directory is None:
        folders = (getattr(logger, "log_dir", None) for logger in trainer.loggers)
        directory = Path(next((folder for folder in folders if isinstance(folder, str)), trainer.default_root_dir))
    return RunFiles(directory, trainer.loggers)


def log_figures(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Give metrics of this step to all loggers, counted as Lightning counts its own."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, trainer.fit_loop.epoch_loop._batches_that_stepped)


def keeper_of_best(trainer: Trainer) -> ModelCheckpoint | None:
    """The first callback that keeps checkpoints by a metric, or null."""
    found = (
        checkpointer
        for checkpointer in checkpointers(trainer)
        if checkpointer.monitor is not None and checkpointer.save_top_k != 0
    )
    return next(found, None)


def keeper_of_last(trainer: Trainer) -> ModelCheckpoint | None:
    """The first callback that keeps a last.ckpt, or null."""
    return next((checkpointer for checkpointer in checkpointers(trainer) if checkpointer.save_last), None)


def checkpointers(trainer: Trainer) -> list[ModelCheckpoint]:
    """The trainer's callbacks that save checkpoints."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, ModelCheckpoint)]


class RunRecorder(Callback):
    """Records the run with tags and parameters, and the best value of each validation metric as best/<metric>.

    MLflow's page shows a metric's last value, which is seldom the one a checkpoint was kept for.
    """

    def __init__(self) -> None:
        self.best: dict[str, float] = {}
        self.best_steps: dict[str, int] = {}
        # What the data says of itself, which takes a plan of an epoch; empty until it is recorded.
        self.data_facts: dict[str, Any] = {}
        self.command: list[str] = sys.argv[1:]
        # Of a run that no MLflow keeps: its name, and what it goes on from.
        self.suggested_name = "run"
        self.checkpoint: str | None = None
        self.local: LocalRun | None = None
        self._noted: tuple[Any, ...] = ()
        # The checkpoint that was the best when the models were logged, and its step.
        self._best: tuple[str, int] = ("", 0)
        self._recorded = False
        self._trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the run is changed; what the best checkpoint is kept for is known by now."""
        self._trained = True
        best, logger = keeper_of_best(trainer), writing_logger(trainer)
        if logger is not None:
            monitor = best.monitor if best is not None else None
            logger.show_columns([f"best/{monitor}"] if monitor is not None else [])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tie the logger to the trainer and let every rank know rank zero's run."""
        logger = mlflow_logger(trainer)
        self._recorded = False
        if logger is not None:
            logger.attach(trainer)
            identity: Any = [logger._run_id, str(logger.run_directory)] if trainer.is_global_zero else None
            logger.adopt(*trainer.strategy.broadcast(identity))
            if stage == "fit" and trainer.is_global_zero:
                write_job(logger.run_directory, self.command)
        elif self._keeps_local(trainer, stage):
            self._begin_local(trainer, stage)
        if getattr(trainer, "places_profiler", False):
            vars(trainer)["profiler"].dirpath = str(run_directory(trainer) or trainer.default_root_dir)

    def place_loggers(self, trainer: Trainer) -> None:
        """Give loggers without a place of their own one on rank zero, where alone they write; before they begin."""
        homeless = [logger for logger in trainer.loggers if lacks_place(logger)]
        if not homeless or not trainer.is_global_zero:
            return
        stage = stage_of(trainer)
        if self._keeps_local(trainer, stage) and self.local is None:
            self.local = begin_local_run(self.suggested_name, self.checkpoint if stage == "fit" else None)
        own = run_directory(trainer)
        for logger in homeless:
            place(logger, own if own is not None else Path(trainer.default_root_dir), self.local)

    def _keeps_local(self, trainer: Trainer, stage: str) -> bool:
        """Whether a run that no MLflow keeps has a directory; all ranks say the same."""
        if mlflow_logger(trainer) is not None or not getattr(trainer, "keeps_runs", False):
            return False
        if self.local is not None or stage == "predict" or stage == "fit" and bool(checkpointers(trainer)):
            return True
        return any(lacks_place(logger) for logger in trainer.loggers)

    def _begin_local(self, trainer: Trainer, stage: str) -> None:
        """Give the run a directory, which all that would go to the working directory goes to."""
        if trainer.is_global_zero and self.local is None:
            self.local = begin_local_run(self.suggested_name, self.checkpoint if stage == "fit" else None)
        found: Any = None
        if self.local is not None:
            found = [self.local.run_id, str(self.local.directory), self.local.name, self.local.resumed]
        run_id, directory, name, resumed = trainer.strategy.broadcast(found)
        if self.local is None:
            self.local = LocalRun(run_id, Path(directory), name, resumed)
        set_root_directory(trainer, directory)
        for checkpointer in checkpointers(trainer):
            # Lightning would take the first logger's directory, another one each time that the run goes on.
            checkpointer.dirpath = checkpointer.dirpath or str(self.local.directory / CHECKPOINTS_NAME)
        if stage == "fit" and trainer.is_global_zero:
            write_job(self.local.directory, self.command)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record; the model is built by now."""
        self._record(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record, when this is not part of a training."""
        self._record(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record."""
        self._record(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record."""
        self._record(trainer, pl_module)

    def _record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        others = [logger for logger in trainer.loggers if not isinstance(logger, MLflowLogger)]
        logger = writing_logger(trainer)
        if not trainer.is_global_zero or not trainer.loggers or self._recorded:
            return
        self._recorded = True
        self.data_facts = _described("data_facts", data_module_of(trainer))
        facts = _described("model_facts", pl_module) | self.data_facts
        tags = {
            "stage": stage_of(trainer),
            "model": type(pl_module).__name__,
            "precision": str(trainer.precision),
            "devices": f"{trainer.world_size} x {trainer.strategy.root_device.type}",
            **git_state(),
            **package_versions(),
            **machine_description(),
            **_identities(data_module_of(trainer)),
        }
        log_facts(others, facts | tags)
        if logger is None:
            return
        logger.log_hyperparams(facts)
        logger.log_inputs(_inputs(data_module_of(trainer), CONTEXTS[stage_of(trainer)]))
        logger.set_tags(tags)
        if stage_of(trainer) != "fit" and trainer.ckpt_path:
            path = Path(trainer.ckpt_path)
            directory = run_directory_of_checkpoint(path)
            source = {"source.run_id": read_run_file(directory / RUN_FILE_NAME).run_id} if directory else {}
            logger.set_tags({"source.checkpoint": str(path), **source})
            # What is measured belongs to the checkpoint's step.
            logger.evaluated_step = read_step(path)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note checkpoints that were saved since the last batch."""
        self._note_checkpoints(trainer)
        self._log_models(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the last ones."""
        self._note_checkpoints(trainer)

    def _log_models(self, trainer: Trainer, ended: bool = False) -> None:
        """Log the best checkpoint as a model if it is a new one, and when the training has ended the last one too."""
        best, last = keeper_of_best(trainer), keeper_of_last(trainer)
        path = best.best_model_path if best is not None else ""
        logger = writing_logger(trainer)
        if logger is None or not self._trained or not ended and path == self._best[0]:
            return
        if path != self._best[0]:
            # One of before the training was resumed is of another step than this one.
            self._best = path, trainer.global_step if self._best[0] else step_of(path, trainer.global_step)
        found = {"best": self._best} if path and Path(path).exists() else {}
        if ended and last is not None and last.last_model_path and Path(last.last_model_path).exists():
            found["last"] = last.last_model_path, step_of(last.last_model_path, trainer.global_step)
        if found:
            logger.log_checkpoints(found, ended)

    def _note_checkpoints(self, trainer: Trainer) -> None:
        directory = run_directory(trainer)
        if directory is None or not trainer.is_global_zero or not self._trained:
            return
        last, best = keeper_of_last(trainer), keeper_of_best(trainer)
        found = (
            last.last_model_path if last is not None else None,
            best.best_model_path if best is not None else None,
            tuple(str(checkpointer.dirpath) for checkpointer in checkpointers(trainer) if checkpointer.dirpath),
        )
        if found == self._noted:
            return
        try:
            note_checkpoints(directory, *found)
            self._noted = found
        except OSError:
            # A full disk: after the next batch there may be room; until then they are found by their names.
            return

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation metrics that are the best so far."""
        if not validates_training(trainer):
            return
        improved = {}
        for name, value in trainer.callback_metrics.items():
            way = direction(name) if name.startswith("validation/") else None
            number = float(value)
            if way is None or not math.isfinite(number):
                continue
            if name not in self.best or is_better(number, self.best[name], way):
                self.best[name] = improved[f"best/{name}"] = number
                self.best_steps[name] = trainer.global_step
        if improved:
            log_figures(trainer, improved)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let store or journal have what was logged before: a run resumed from here logs only what follows."""
        logger = mlflow_logger(trainer)
        run_id = logger._run_id if logger is not None else self.local.run_id if self.local is not None else None
        if run_id is not None:
            checkpoint[RUN_KEY] = {"run_id": run_id, "directory": str(run_directory(trainer))}
        if logger is not None:
            logger.flush(SECONDS_TO_FLUSH)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say why the run ended: killed by a person or a system, or failed."""
        logger = mlflow_logger(trainer)
        if self.local is not None:
            self._note_checkpoints(trainer)
            self.local.end()
        if logger is None or not logger._initialized:
            return
        self._note_checkpoints(trainer)
        self._log_models(trainer, ended=True)
        interrupted = isinstance(exception, KeyboardInterrupt | SystemExit | SIGTERMException)
        if logger.status_before is not None and not self._trained:
            # An attempt to resume that did not come so far as a step: the run is what it was.
            logger.mark(logger.status_before)
        else:
            logger.mark("KILLED" if interrupted else "FAILED")
        if not interrupted:
            kind = "" if isinstance(exception, UserError) else f"{type(exception).__name__}: "
            logger.set_tags({"failure": kind + first_line(exception, 1000)})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the checkpoints once more, with the best one's score."""
        logger = mlflow_logger(trainer)
        if self.local is not None:
            self._note_checkpoints(trainer)
            self.local.end()
        if logger is not None and stage != "fit" and trainer.is_global_zero:
            tags = logger.sent_tags
            logger.show_columns(main_figures(logger.latest))
            if "source.run_id" in tags and logger.evaluated_step is not None:
                logger.log_measurement(tags["source.run_id"], tags["source.checkpoint"], logger.evaluated_step)
        if logger is None or stage != "fit":
            return
        self._note_checkpoints(trainer)
        self._log_models(trainer, ended=True)
        for checkpoint in checkpointers(trainer):
            logger.after_save_checkpoint(checkpoint)
        best = keeper_of_best(trainer)
        if best is not None and best.best_model_score is not None:
            logger.set_tags({"checkpoint.best_score": f"{best.monitor} = {float(best.best_model_score):g}"})

    def state_dict(self) -> dict[str, Any]:
        """The best values and their steps, so that a resumed run goes on comparing with them."""
        return {"best": dict(self.best), "best_steps": dict(self.best_steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best values of the run that is resumed."""
        self.best = dict(state_dict["best"])
        # Earlier versions did not keep them.
        self.best_steps = dict(state_dict.get("best_steps", {}))


def main_figures(metrics: Iterable[str], most: int = 3) -> list[str]:
    """Names of the figures of a measurement that are of the whole, not of a class, a block or an objective."""
    names = [name for name in metrics if name.startswith(("test/", "evaluate/")) and name.count("/") == 1]
    # The loss is shown where there is nothing better.
    return sorted(names, key=lambda name: name.endswith("/loss"))[:most]


def read_step(checkpoint: str | Path) -> int:
    """The optimiser step of a checkpoint, which is mapped into memory, so that only the number is read."""
    if holds_shards(checkpoint):
        checkpoint = Path(checkpoint) / SHARDS
    return int(torch.load(checkpoint, mmap=True, weights_only=True, map_location="cpu")["global_step"])


def step_of(checkpoint: str, otherwise: int) -> int:
    """The optimiser step of a training's checkpoint; of one in parts or of another format `otherwise`."""
    try:
        return read_step(checkpoint)
    except Exception:  # a directory, a file of a person's own CheckpointIO
        return otherwise


def _described(prefix: str, thing: Any) -> dict[str, Any]:
    """What a module or data module says of itself, under a prefix."""
    return {f"{prefix}.{key}": value for key, value in _facts(thing).items()}


def _facts(thing: Any) -> dict[str, Any]:
    describe = getattr(thing, "describe", None)
    return dict(describe()) if callable(describe) else {}


def _inputs(datamodule: Any, contexts: Iterable[str]) -> list[DataInput]:
    """The data of a stage; one's own data module is known by its class and its fingerprint, if it has one."""
    known = {"source": type(datamodule).__name__, "data_fingerprint": getattr(datamodule, "fingerprint", None)}
    return data_inputs(known | _facts(datamodule), contexts)


def _identities(datamodule: Any) -> dict[str, str]:
    """Hash of the tokenizer and fingerprint of the data, where there are any."""
    found = {
        "tokenizer.hash": getattr(getattr(datamodule, "tokenizer", None), "hash", None),
        "data.fingerprint": getattr(datamodule, "fingerprint", None),
    }
    return {key: str(value) for key, value in found.items() if value}
