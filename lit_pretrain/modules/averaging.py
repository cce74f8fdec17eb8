"""An exponential moving average of the weights over the optimiser steps (`model.average`).

Averages of the last steps' weights (Polyak and Juditsky 1992, doi:10.1137/0330046) are those of a training whose rate
has been lowered (Morales-Brotons et al. 2024, arXiv:2411.18704). They are what is evaluated, exported and started from;
the training goes on from its own weights, which a checkpoint has too, as its `state_dict`.

Only what is trained is averaged: frozen parameters and buffers are the module's own. Each process averages what it
holds, under FSDP its shards.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lit_pretrain.backbone import row_look_up
from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.errors import check_number
from lit_pretrain.modules.optimization import named_parameters
from lit_pretrain.modules.strategies import gathered, is_sharded, whole
from lit_pretrain.required import required

# Where a checkpoint has the averages.
AVERAGE = "lit_pretrain_average"


@dataclass(frozen=True)
class AverageConfig:
    """Settings of weight averaging.

    Args:
        decay: What the average keeps of itself at each optimiser step, 0.999 say, the mean of about the last 1,000
            steps' weights; after few steps less, (1 + n) / (10 + n) after n. Null averages nothing.
    """

    decay: float | None = None

    def __post_init__(self) -> None:
        """Refuse what averages nothing, or never moves."""
        check_number("model.average.decay", self.decay, above=0, below=1)


class WeightAverage:
    """The averages of a module's trained parameters, and their exchange for the parameters themselves.

    Args:
        module: As the strategy has wrapped its inside; its parameters are those that are trained.
        strategy: The trainer's.
        decay: Of `AverageConfig`.
        saved: What `state` returned, to go on from; null begins with the weights as they are. Collective.
    """

    def __init__(self, module: nn.Module, strategy: Strategy, decay: float, saved: dict[str, Any] | None) -> None:
        self.decay = decay
        self.updates = 0
        self._module, self._strategy = module, strategy
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._averages = self._copied()
        # The weights that are trained, while the averages are in their place.
        self._own: list[Tensor] | None = None
        if saved is not None:
            own = self._copied()
            self.updates = saved["updates"]
            load_averages(module, strategy, saved)
            self._averages = self._copied()
            self._place(own)

    @torch.no_grad()
    def _copied(self) -> list[Tensor]:
        """The parameters as they are, in float32 at least: 16 bits would lose what a step changes."""
        return [at_least_float32(parameter.detach()).clone() for parameter in self._parameters]

    @torch.no_grad()
    def _place(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        whole: tuple[list[Tensor], list[Tensor]] = [], []
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            if row_look_up.has_sparse_gradient(parameter):
                # Its weight decay is a factor that waits.
                average.mul_(decay).add_(parameter, alpha=(1 - decay) * row_look_up.pending_decay(parameter))
            else:
                whole[0].append(average)
                whole[1].append(at_least_float32(parameter.detach()))
        if whole[0]:
            get_ema_multi_avg_fn(decay)(*whole, None)

    def apply(self) -> None:
        """Put the averages in the place of the weights, until `restore`."""
        if self._own is None:
            self._own = self._copied()
            self._place(self._averages)

    def restore(self) -> None:
        """Put the weights that are trained back."""
        if self._own is not None:
            self._place(self._own)
            self._own = None

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Within this the weights are those that are trained."""
        applied = self._own is not None
        self.restore()
        yield
        if applied:
            self.apply()

    def state(self) -> dict[str, Any]:
        """Updates and averages, as a checkpoint has them: each under all names of its parameter; collective."""
        places = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        values = self._whole() if is_sharded(required(self._strategy.model)) else self._averages
        names = named_parameters(self._module, remove_duplicate=False)
        weights = {name: values[places[id(parameter)]] for name, parameter in names if id(parameter) in places}
        return {"updates": self.updates, "weights": weights}

    def _whole(self) -> list[Tensor]:
        """The averages of which each process has a shard; collective."""
        if any(isinstance(average, DTensor) for average in self._averages):
            return [whole(average).cpu() for average in self._averages]
        own = self._copied()
        self._place(self._averages)
        with gathered(required(self._strategy.model)):
            values = [parameter.detach().cpu().clone() for parameter in self._parameters]
        self._place(own)
        return values


@torch.no_grad()
def load_averages(module: nn.Module, strategy: Strategy, saved: dict[str, Any]) -> None:
    """Put the averages of a checkpoint in the place of a module's weights, sharded ones too; collective.

    Args:
        module: Whose names they have.
        strategy: That has wrapped it.
        saved: What `WeightAverage.state` returned.
    """
    with gathered(required(strategy.model), writeback=True):
        for name, parameter in named_parameters(module):
            if name in saved["weights"]:
                parameter.copy_(saved["weights"][name])


def with_averages(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint whose weights are the averages where it has some; for all but a training that goes on from it."""
    if AVERAGE not in checkpoint:
        return checkpoint
    state = checkpoint["state_dict"]
    averages = checkpoint[AVERAGE]["weights"]
    weights = {name: value.to(state[name].dtype) for name, value in averages.items() if name in state}
    rest = {key: value for key, value in checkpoint.items() if key != AVERAGE}
    return rest | {"state_dict": state | weights}
