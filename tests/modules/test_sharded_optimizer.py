"""Parameter groups and clipping under FSDP, which makes shards of one dimension of all parameters (two processes)."""

import os
from types import SimpleNamespace

import torch
from child_processes import both_ranks
from labelled_texts import make_encoder
from lightning.pytorch.plugins.precision import Precision
from torch import distributed
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from lit_pretrain.backbone.transformer import Block
from lit_pretrain.modules.clipping import clip_gradients
from lit_pretrain.modules.optimization import (
    AdamWConfig,
    ScheduleConfig,
    TrainedPart,
    layer_parts,
    make_optimizer,
    make_scheduler,
    remember_dimensions,
)

IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 5, 6, 11, 3]])


class Classifier(torch.nn.Module):
    """A small text encoder with a pooling of its own, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = make_encoder(vocabulary_size=20, pooling="map")
        self.head = torch.nn.Linear(32, 3)
        remember_dimensions(self)

    def forward(self, ids):
        return self.head(self.encoder(ids))


def train(module, whole):
    """Three steps, the embeddings waiting for the third; the optimiser at their end."""
    encoder, layers = module.encoder, {0: 2, 1: 1}
    parts = [TrainedPart(module.head, 2.0), *layer_parts(encoder, 0.5, layers)]
    optimizer = make_optimizer(parts, AdamWConfig(learning_rate=1e-2, weight_decay=0.3), fused=False)
    scheduler = make_scheduler(optimizer, ScheduleConfig(warm_up=0), 4)
    trainer = SimpleNamespace(strategy=SimpleNamespace(model=whole), precision_plugin=Precision())
    for _ in range(3):
        optimizer.zero_grad()
        whole(IDS).logsumexp(dim=1).square().sum().backward()
        clip_gradients(trainer, optimizer, 0.1, "norm")
        optimizer.step()
        scheduler.step()
    return optimizer


def sharded(directory):
    """What one of two processes does."""
    distributed.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]), world_size=2)
    module = Classifier()
    settings = {"auto_wrap_policy": ModuleWrapPolicy({Block}), "use_orig_params": True}  # as Lightning's strategy
    whole = FullyShardedDataParallel(module, device_id=torch.device("cpu"), **settings)
    optimizer = train(module, whole)
    with FullyShardedDataParallel.state_dict_type(whole, StateDictType.FULL_STATE_DICT, FullStateDictConfig()):
        state = FullyShardedDataParallel.optim_state_dict(whole, optimizer)["state"]
        # Of this alone: on a CPU, torch 2.14.1 gathers all of a parameter's states into one memory, the last one's.
        found = {"after": whole.state_dict(), "squares": {name: one["exp_avg_sq"] for name, one in state.items()}}
    distributed.destroy_process_group()
    return found


def test_two_shards_are_as_one(tmp_path):
    first, _ = both_ranks(sharded, tmp_path)
    alone = Classifier()
    optimizer = train(alone, alone)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(first["after"][name], parameter.data, rtol=1e-4, atol=1e-5, msg=name)
        squares = optimizer.state[parameter]["exp_avg_sq"]
        torch.testing.assert_close(first["squares"][name], squares, rtol=1e-2, atol=1e-9, msg=name)
