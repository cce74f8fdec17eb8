#!/usr/bin/env bash
# torch 2.14.1: FSDP.optim_state_dict gives a whole optimiser state whose moments are all the last one gathered.
#
# Where: FullyShardedDataParallel(use_orig_params=True) on a CPU (gloo) with at least two processes, FULL_STATE_DICT.
# Behaviour: `exp_avg` of every parameter equals its `exp_avg_sq`, bit for bit, though the optimiser's own moments differ
#   and the parameters are right. The states of a unit are gathered one after the other into one tensor, and what is
#   returned are views of it: on a GPU they are copied to the CPU in between (offload_to_cpu=True, the default where only
#   rank 0 has it), on a CPU they are not. A training that is saved and gone on with continues from wrong first moments,
#   without any error. With a single process, which FSDP does not shard, the moments are right.
# Seen (2026-11-28, Linux x86_64, Python 3.11):
#   1 process:   exp_avg == exp_avg_sq: False
#   2 processes: exp_avg == exp_avg_sq: True, although the optimiser's own first moment is -0.1269 and its second 0.0016
# Way round: copy the sharded states before they are gathered, or use FSDP2 with torch.distributed.checkpoint.state_dict.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5
cat > "$work/gather.py" <<'PYTHON'
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP


def train_and_gather(rank, world_size, port, answers):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    model = FSDP(torch.nn.Linear(4, 4), use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    everywhere = FullStateDictConfig(rank0_only=False), FullOptimStateDictConfig(rank0_only=False)
    with FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT, *everywhere):
        gathered = FSDP.optim_state_dict(model, optimizer)["state"]["weight"]
    if rank == 0:
        own = [optimizer.state[part] for part in model.parameters() if part in optimizer.state][0]
        equal = torch.equal(gathered["exp_avg"], gathered["exp_avg_sq"])
        answers.put((equal, float(own["exp_avg"].flatten()[0]), float(own["exp_avg_sq"].flatten()[0])))
    dist.destroy_process_group()


if __name__ == "__main__":
    answers, found = mp.get_context("spawn").SimpleQueue(), []
    for world_size in (1, 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        mp.spawn(train_and_gather, (world_size, port, answers), nprocs=world_size)
        equal, first, second = answers.get()
        print(f"{world_size} process(es): exp_avg == exp_avg_sq: {equal}; the optimiser has {first:.4f}, {second:.4f}")
        assert first < 0 < second
        found.append(equal)
    raise SystemExit(0 if found == [False, True] else 1)
PYTHON
"$work/venv/bin/python" -W ignore "$work/gather.py" || { echo "The behaviour has changed."; exit 1; }
