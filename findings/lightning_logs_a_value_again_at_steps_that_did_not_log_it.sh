#!/usr/bin/env bash
# lightning 2.6.6: a value that is logged at some steps only is logged again, unchanged, at the steps between.
#
# Where: LightningModule.log(name, value) in on_train_batch_end, at every other step, with log_every_n_steps=1.
# Behaviour: what a step has logged stays among the results until something new comes under its name, and every later
#   step that logs hands it to the loggers once more, with its own step. A figure that exists for step 1 alone stands in
#   the curve at steps 1 and 2; one that is measured once (after a save, say) is drawn on and on.
# Seen (2026-11-29, Linux x86_64, Python 3.11, torch 2.14.1, CPU), the value is the batch's number, at odd ones only:
#   step and value: (1, 1.0) (2, 1.0) (3, 3.0) (4, 3.0) (5, 5.0)
# Way round: hand such figures to trainer.logger.log_metrics with their step.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet lightning==2.6.6 torch==2.14.1
cat > "$work/check.py" <<'PYTHON'
import logging

logging.disable(logging.CRITICAL)
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.loggers.logger import Logger


class Rows(Logger):
    """Keeps what it is handed."""

    name, version = "rows", "0"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics.get("batch")))

    def log_hyperparams(self, *arguments, **settings):
        pass


class OddSteps(Callback):
    """Logs the number of every other batch."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx % 2:
            module.log("batch", float(batch_idx))


logger = Rows()
quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
settings = {"max_steps": 6, "log_every_n_steps": 1, "limit_val_batches": 0, "accelerator": "cpu", "devices": 1}
Trainer(logger=logger, callbacks=[OddSteps()], **settings, **quiet).fit(BoringModel(), BoringDataModule())
print("step and value:", *logger.rows)
raise SystemExit(0 if logger.rows == [(1, 1.0), (2, 1.0), (3, 3.0), (4, 3.0), (5, 5.0)] else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
