#!/usr/bin/env bash
# lightning 2.6.6: EMAWeightAveraging rounds integer buffers, and the model that is kept has other integers in them.
#
# Where: Trainer(callbacks=[EMAWeightAveraging()]), a module with an int64 buffer above 2**24 (hash keys, offsets, seeds, long
#   look-up tables).
# Behaviour: buffers are averaged like weights: the average is computed in float32 and cast back, though the buffer never
#   changed. When the training ends (and for every validation) the averaged values are copied into the model, so a look-up
#   table points elsewhere. Nothing is said. Small integers come out as they were, which hides it.
# Seen (2026-11-28, Linux x86_64, Python 3.11), a buffer of [17825811, 7] after three steps:
#   without averaging: [17825811, 7]
#   with averaging:    [17825812, 7]
# Way round: keep integers out of the state (persistent attributes that are no buffers), or copy buffers in a subclass.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet lightning==2.6.6 torch==2.14.1 numpy==2.3.5
cat > "$work/check.py" <<'PYTHON'
import logging

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader

logging.disable(logging.CRITICAL)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.register_buffer("keys", torch.tensor([17825811, 7]))

    def training_step(self, batch, index):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def keys_after(callbacks):
    module = Module()
    trainer = lightning.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, DataLoader(torch.ones(6, 2), batch_size=2))
    return module.keys.tolist()


plain, averaged = keys_after([]), keys_after([EMAWeightAveraging()])
print("without averaging:", plain)
print("with averaging:   ", averaged)
assert plain == [17825811, 7]
raise SystemExit(0 if averaged[0] != 17825811 and averaged[1] == 7 else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
