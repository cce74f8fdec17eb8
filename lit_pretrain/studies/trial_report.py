"""Tells Optuna what a trial's validations measure, and ends a trial that promises little."""

import json
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_pretrain.studies.trials import PRUNED_KEY, open_trial


class TrialReport(Callback):
    """Reports the metric at every validation; the trial ends after one at which the pruner says so.

    With several processes the first one reports, and all agree on its answer (a collective call).

    Args:
        storage: Address of Optuna's store.
        study: Name of the study in it.
        trial: The trial's id in the store.
        metric: Name of the metric.
        pruner: As in the sweep's settings, as JSON, since a config would take its class for a callback's.
    """

    def __init__(self, storage: str, study: str, trial: int, metric: str, pruner: str = "null") -> None:
        self.storage, self.study, self.trial_id, self.metric, self.pruner = storage, study, trial, metric, pruner
        self._trial: Any = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and ask."""
        if trainer.sanity_checking:
            return
        ends = False
        if trainer.is_global_zero and self.metric in trainer.callback_metrics:
            ends = self.report(float(trainer.callback_metrics[self.metric]), trainer.global_step)
            # What is at its end anyway is whole.
            ends = ends and not 0 < trainer.max_steps <= trainer.global_step
            if ends:
                self._trial.set_user_attr(PRUNED_KEY, trainer.global_step)
        trainer.should_stop = trainer.strategy.broadcast(ends) or trainer.should_stop

    def report(self, value: float, step: int) -> bool:
        """Report a value; whether the trial ends."""
        if self._trial is None:
            self._trial = open_trial(self.storage, self.study, self.trial_id, json.loads(self.pruner))
        if not math.isfinite(value):
            # The training fails of it; no trial is compared with it.
            return False
        if step not in self._trial.storage.get_trial(self.trial_id).intermediate_values:
            # Else a resumed training measures again what it had measured.
            self._trial.report(value, step)
        return bool(self._trial.should_prune())
