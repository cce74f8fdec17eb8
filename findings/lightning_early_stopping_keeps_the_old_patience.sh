#!/usr/bin/env bash
# lightning 2.6.6: a training that is resumed with another patience of EarlyStopping keeps the former one.
#
# Where: trainer.fit(ckpt_path=...) with EarlyStopping(patience=...) other than that of the checkpoint.
# Behaviour: `patience` is part of the callback's state, so loading the checkpoint overwrites what the constructor was
#   given, without a word: who resumes a training with more patience because it stopped too early is stopped at the same
#   place. The other arguments (min_delta, mode, stopping_threshold) are the new ones.
# Seen (2026-11-28, Linux x86_64, Python 3.11), a metric that never improves, patience 2, then resumed after one epoch with
# patience 5:
#   patience in use: 2; validations in all: 3
# Way round: set the attribute after loading (in on_train_start), or leave the callback out of the checkpoint.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet lightning==2.6.6 torch==2.14.1 numpy==2.3.5
cat > "$work/check.py" <<'PYTHON'
import logging

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

logging.disable(logging.CRITICAL)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, index):
        return (self.weight * batch).mean()

    def validation_step(self, batch, index):
        self.log("score", 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(patience, epochs, directory, checkpoint=None):
    stopping = EarlyStopping("score", patience=patience)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[stopping, ModelCheckpoint(directory, save_last=True)],
    )
    data = DataLoader(torch.ones(4, 1), batch_size=1)
    trainer.fit(Module(), data, data, ckpt_path=checkpoint)
    return stopping.patience, trainer.current_epoch


assert fit(5, 20, "whole") == (5, 6)
fit(2, 1, "former")
patience, epochs = fit(5, 20, "resumed", "former/last.ckpt")
print(f"patience in use: {patience}; validations in all: {epochs}")
raise SystemExit(0 if (patience, epochs) == (2, 3) else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
