"""Muon for the matrices inside the blocks, AdamW for all else (`optimizer.algorithm: muon`).

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a matrix by the nearest orthogonal one of its mean
gradient, so that all directions of it learn alike. Scaled by 0.2 times the root of the larger side its steps are as
large as AdamW's (Liu et al. 2025, arXiv:2502.16982): both have one learning rate, and one that was found for AdamW
serves. Embeddings, heads, norms and biases are no such maps between features and stay with AdamW, as there.

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

# What a group of matrices has in the place of AdamW's settings of the same names.
SETTINGS = {"nesterov": True, "eps": 1e-7, "adjust_lr_fn": "match_rms_adamw"}


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
        # Loading a state makes new groups and moments.
        self._matrices.param_groups, self._matrices.state = groups, self.state
        self._matrices.step()
        for group in groups:
            for matrix in group["params"]:
                # AdamW looks for it in whatever it loads; Muon counts nothing.
                self.state[matrix].setdefault("step", torch.zeros(()))
        return loss
