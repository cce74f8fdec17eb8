"""Keeps the description on MLflow's page of a run: written as it begins, brought up to date as it ends."""

import time

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_pretrain.callbacks.end_page import chance_of
from lit_pretrain.comparison.description import describe, starts_here
from lit_pretrain.comparison.lineage import Start
from lit_pretrain.tracking.run_record import writing_logger


class Description(Callback):
    """Describes the run in MLflow: what, on what, from where, result, next commands; what a person adds there stays."""

    def __init__(self) -> None:
        self._began = 0.0
        self._starts: tuple[Start, ...] = ()
        self._ended_as: str | None = None
        self._knows_chance = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A trainer may fit and then test."""
        self._began, self._ended_as, self._knows_chance = 0.0, None, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe what begins."""
        self._begin(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe, when this is not part of a training."""
        self._begin(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe."""
        self._begin(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe."""
        self._begin(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what figures are without learning, for a training that is stopped too; once, since it may take a plan of
        an epoch.
        """
        if not trainer.sanity_checking and not self._knows_chance:
            self._keep_chance(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As after a validation: of a training without any, of one whose other callbacks have measured since."""
        self._keep_chance(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As after a validation."""
        self._keep_chance(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Describe what came of it."""
        interrupted = isinstance(exception, KeyboardInterrupt | SystemExit | SIGTERMException)
        self._ended_as = "KILLED" if interrupted else "FAILED"
        self._describe(trainer, self._ended_as)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Describe what came of it."""
        if self._ended_as is None:
            self._describe(trainer, "FINISHED")

    def _begin(self, trainer: Trainer) -> None:
        logger = writing_logger(trainer)
        if logger is None or self._began:
            return
        self._began = time.time()
        self._starts = starts_here(logger)
        self._describe(trainer, "RUNNING")

    def _keep_chance(self, trainer: Trainer, module: LightningModule) -> None:
        self._knows_chance = True
        logger = writing_logger(trainer)
        if logger is not None:
            logger.log_chance(chance_of(trainer, module))

    def _describe(self, trainer: Trainer, status: str) -> None:
        logger = writing_logger(trainer)
        if logger is None or not self._began:
            return
        describe(logger, self._began, status, self._starts)
