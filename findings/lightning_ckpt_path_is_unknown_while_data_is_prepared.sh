#!/usr/bin/env bash
# lightning 2.6.6: trainer.ckpt_path is None in prepare_data, setup and configure_model of a training that is resumed.
#
# Where: Trainer.fit(module, data, ckpt_path="...") and the property Trainer.ckpt_path; so too Trainer.validate.
# Behaviour: the documentation calls the property the path of the checkpoint that the run loads. It is set when the
#   checkpoint is restored, which comes after the hooks in which data and modules are made: a data module that keeps a
#   vocabulary for a resumed training, or a module that need not read the weights it starts from, sees no checkpoint. From
#   on_fit_start on it is there.
# Seen (2026-11-29, Linux x86_64, Python 3.11, torch 2.14.1, CPU):
#   prepare_data None, setup None, configure_model None, on_fit_start a.ckpt
# Way round: overwrite Trainer.fit, or hand the path to the data module beside the trainer.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet lightning==2.6.6 torch==2.14.1
cat > "$work/check.py" <<'PYTHON'
import logging

logging.disable(logging.CRITICAL)
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

seen = {}


class Data(BoringDataModule):
    def prepare_data(self):
        seen["prepare_data"] = self.trainer.ckpt_path

    def setup(self, stage):
        seen["setup"] = self.trainer.ckpt_path
        super().setup(stage)


class Module(BoringModel):
    def configure_model(self):
        seen["configure_model"] = self.trainer.ckpt_path

    def on_fit_start(self):
        seen["on_fit_start"] = self.trainer.ckpt_path


def trainer(steps):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    return Trainer(max_steps=steps, accelerator="cpu", devices=1, enable_checkpointing=False, **quiet)


first = trainer(1)
first.fit(Module(), Data())
first.save_checkpoint("a.ckpt")
seen.clear()
trainer(2).fit(Module(), Data(), ckpt_path="a.ckpt")
print(", ".join(f"{hook} {path}" for hook, path in seen.items()))
hooks = ("prepare_data", "setup", "configure_model")
raise SystemExit(0 if seen == dict.fromkeys(hooks) | {"on_fit_start": "a.ckpt"} else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
