#!/usr/bin/env bash
# torch 2.14.1: FSDP's ModuleWrapPolicy wraps a module that two parents share in one of them only.
#
# Where: FullyShardedDataParallel(model, auto_wrap_policy=ModuleWrapPolicy({Block})), a Block that is an attribute of two
#   modules (blocks that share weights as in ALBERT, an encoder that two heads hold).
# Behaviour: the first parent holds the FSDP module, the second one still holds the plain block, whose parameters are
#   sharded: nothing gathers them when it is called through the second parent alone. The model is wrapped without a
#   warning.
# Seen (2026-11-28, Linux x86_64, Python 3.11, 2 processes, gloo):
#   first parent: FullyShardedDataParallel, second parent: Block
# Way round: share by calling one parent, or wrap by hand and set the wrapped module in both.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5
cat > "$work/check.py" <<'PYTHON'
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.wrap import ModuleWrapPolicy


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)


class Parent(torch.nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block


def wrap(rank, port, answers):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    block = Block()
    model = torch.nn.ModuleList([Parent(block), Parent(block)])
    wrapped = FSDP(model, auto_wrap_policy=ModuleWrapPolicy({Block}), device_id=torch.device("cpu"))
    if rank == 0:
        answers.put([type(parent.block).__name__ for parent in wrapped.module])
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = mp.get_context("spawn").SimpleQueue()
    mp.spawn(wrap, (port, answers), nprocs=2)
    first, second = answers.get()
    print(f"first parent: {first}, second parent: {second}")
    raise SystemExit(0 if (first, second) == ("FullyShardedDataParallel", "Block") else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
