#!/usr/bin/env bash
# lightning 2.6.6: `precision="bf16-true"` (and "16-true") rounds the targets of a batch, not only the model's input.
#
# Where: Trainer(precision="bf16-true"), any batch with floating-point targets: numbers to be predicted, soft labels, class
#   weights, time stamps.
# Behaviour: every floating-point tensor of the batch is cast on its way to training_step, whatever it is for. bfloat16 has
#   8 bits of precision, so a target of 1001 is 1000 and one of 1003 is 1004: the training learns, and the validation is
#   measured against, other numbers than the data has. No warning is given; "bf16-mixed" leaves the batch alone.
# Seen (2026-11-28, Linux x86_64, Python 3.11):
#   32-true:    [1001.0, 1003.0] torch.float32
#   bf16-mixed: [1001.0, 1003.0] torch.float32
#   bf16-true:  [1000.0, 1004.0] torch.bfloat16
# Way round: a HalfPrecision plugin of one's own, whose convert_input casts only what the model reads. float64 is no way
#   round, it is cast too; integers are left alone.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet lightning==2.6.6 torch==2.14.1 numpy==2.3.5
cat > "$work/check.py" <<'PYTHON'
import logging

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

logging.disable(logging.CRITICAL)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        self.target = batch[1]
        return self.layer(batch[0]).float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def target_seen(precision, dtype=torch.float32):
    data = TensorDataset(torch.ones(2, 2), torch.tensor([1001.0, 1003.0], dtype=dtype))
    module = Module()
    trainer = lightning.Trainer(
        max_steps=1,
        precision=precision,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=2))
    print(f"{precision + ':':<12}{module.target.tolist()} {module.target.dtype}")
    return module.target.tolist()


assert target_seen("32-true") == target_seen("bf16-mixed") == [1001.0, 1003.0]
same = target_seen("bf16-true") == target_seen("bf16-true", torch.float64) == [1000.0, 1004.0]
raise SystemExit(0 if same else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
