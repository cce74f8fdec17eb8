"""Muon for the matrices inside the blocks, AdamW for all else (`optimizer.algorithm: muon`).

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a matrix by the nearest orthogonal one of its mean
gradient, so that all directions of it learn alike. Scaled by the root of the larger side the root mean square of a step
is the learning rate, as AdamW's is at first, so that both have one learning rate. Liu et al. 2025 (arXiv:2502.16982)
take 0.2 of that, which is AdamW's in long trainings; in those of minutes it was too little (docs/results/log.md).
Embeddings, heads, norms and biases are no such maps between features and stay with AdamW, as there.

The step of the matrices is `torch.optim.Muon`'s. Queries, keys and values are one matrix here, and are moved as one.
"""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.optim import Muon

from lit_pretrain.backbone.transformer import Block
from lit_pretrain.errors import UserError
from lit_pretrain.modules.clipping import without_gradients
from lit_pretrain.modules.sparse_embeddings import SparseAdamW

# Of torch's "match_rms_adamw", which is 0.2 times the root of the larger side.
STEP_FACTOR = 5.0
# What a group of matrices has in the place of AdamW's settings of the same names.
SETTINGS: dict[str, Any] = {"nesterov": True, "eps": 1e-7, "adjust_lr_fn": "match_rms_adamw"}


def block_matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """The matrices of all Transformer blocks in a module, by the shapes that they have now."""
    for part in module.modules():
        if isinstance(part, Block):
            yield from (parameter for parameter in part.parameters() if parameter.ndim == 2)


def check_strategy(module: nn.Module, strategy: Strategy) -> None:
    """Refuse what Muon cannot train.

    Raises:
        UserError: If the strategy shards parameters, or no matrix of a block is trained.
    """
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise UserError(
            "optimizer.algorithm muon needs whole matrices, which trainer.strategy "
            f"{type(strategy).__name__} cuts into shards: take ddp, or optimizer.algorithm adamw."
        )
    if not any(matrix.requires_grad for matrix in block_matrices(module)):
        raise UserError(
            "optimizer.algorithm muon is for the matrices of Transformer blocks, and no block is trained here: take "
            "adamw."
        )


class MuonWithAdamW(SparseAdamW):
    """Muon for groups with `muon`, AdamW for the others; one optimiser to Lightning, schedules and checkpoints."""

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._matrices = Muon(self._matrix_groups(), **SETTINGS)

    def _matrix_groups(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group.get("muon")]

    def step(self, closure: Any = None) -> Any:
        """As the two."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self._matrix_groups()
        with without_gradients(matrix for group in groups for matrix in group["params"]):
            super().step()
        # Loading a state makes new groups and moments. The decay of a step is AdamW's.
        self._matrices.state = self.state
        self._matrices.param_groups = [
            group | {"lr": group["lr"] * STEP_FACTOR, "weight_decay": group["weight_decay"] / STEP_FACTOR}
            for group in groups
        ]
        self._matrices.step()
        for group in groups:
            for matrix in group["params"]:
                # AdamW looks for it in whatever it loads; Muon counts nothing.
                self.state[matrix].setdefault("step", torch.zeros(()))
        return loss
