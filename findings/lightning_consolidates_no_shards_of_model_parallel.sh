#!/usr/bin/env bash
# lightning 2.6.6: neither of its two consolidation commands makes a Trainer's checkpoint of ModelParallelStrategy's shards.
#
# Where: Trainer.save_checkpoint under ModelParallelStrategy (FSDP2 and tensor parallel; a directory of shards by
#   default), then `python -m lightning.pytorch.utilities.consolidate_checkpoint` as the documentation of sharded
#   checkpoints says, or the same command of lightning.fabric.
# Behaviour: Trainer's command looks for the weights under "model", where FSDPStrategy puts them; this strategy puts them
#   under "state_dict", and it ends with a KeyError. Fabric's command takes the directory, but leaves the optimiser's state
#   under "optimizer_0", where Trainer.fit(ckpt_path=...) looks for "optimizer_states".
# Seen (2026-11-29, Linux x86_64, Python 3.11, torch 2.14.1, one process on a CPU with gloo):
#   pytorch: KeyError: 'model'; fabric: optimizer_0, state_dict
# Way round: Fabric's command, then put the optimisers' states into a list named optimizer_states.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet lightning==2.6.6 torch==2.14.1
cat > "$work/check.py" <<'PYTHON'
import logging
import subprocess
import sys

import torch

logging.disable(logging.CRITICAL)
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard


class Sharded(BoringModel):
    def configure_model(self):
        fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])


def consolidate(library):
    """The last line of what the command says of an error, and what lies in the file that it made."""
    module, file = f"lightning.{library}.utilities.consolidate_checkpoint", f"{library}.ckpt"
    command = [sys.executable, "-W", "ignore", "-m", module, "shards", "--output_file", file]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return ", ".join(key for key in sorted(torch.load(file, weights_only=True)) if "state" in key or "optim" in key)


strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
trainer = Trainer(max_steps=1, limit_val_batches=0, accelerator="cpu", devices=1, strategy=strategy, **quiet)
trainer.fit(Sharded(), BoringDataModule())
trainer.save_checkpoint("shards")
torch.distributed.destroy_process_group()
seen = {library: consolidate(library) for library in ("pytorch", "fabric")}
print("; ".join(f"{library}: {what}" for library, what in seen.items()))
raise SystemExit(0 if seen == {"pytorch": "KeyError: 'model'", "fabric": "optimizer_0, state_dict"} else 1)
PYTHON
cd "$work"
MASTER_ADDR=127.0.0.1 "$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
