"""Embedding tables that are updated only at the rows that a step has read (`optimizer.sparse_embeddings`).

AdamW reads and writes a table and both of its moments as a whole, and so does everything that handles its gradient.
Here the gradient holds rows (`lit_pretrain.backbone.row_look_up`), the second moment is one number a row, the mean over
its squares (Anil et al. 2019, arXiv:1901.11150, and the row-wise optimisers of FBGEMM and TorchRec), and there is no
first moment: with one a row would go on moving at steps that do not read it. A row that is not read has no gradient,
and so nothing of this is an approximation: the table moves as it would if all of it was gone through at each step.

Under DDP such a gradient is not DDP's: NCCL does not add up sparse tensors. Each process gathers the rows of all.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lit_pretrain.backbone import row_look_up
from lit_pretrain.errors import UserError
from lit_pretrain.modules.bfloat16_moments import Bfloat16MomentsAdamW
from lit_pretrain.modules.clipping import without_gradients
from lit_pretrain.objectives.gathering import gather_rows, processes, together

# The second moment in an optimiser's state, (V,).
ROW_MOMENT = "row_exp_avg_sq"


def sparse_tables(module: nn.Module, ngrams_alone: bool = False) -> dict[str, nn.Parameter]:
    """Tables of a module, by name, whose gradient is of the rows that a step reads.

    Those that a module inside names in `sparse_tables()`, but for the word pieces where an objective predicts them by
    the same table (`ties_embeddings`), whose gradient is of all rows, or where n-grams' are asked for alone.
    """
    whole_pieces = ngrams_alone or any(getattr(submodule, "ties_embeddings", False) for submodule in module.modules())
    tables = {}
    for prefix, submodule in module.named_modules():
        if hasattr(submodule, "sparse_tables"):
            for name in cast(Any, submodule).sparse_tables(whole_pieces):
                tables[f"{prefix}.{name}" if prefix else name] = submodule.get_parameter(name)
    return tables


def begin(module: nn.Module, strategy: Strategy, ngrams_alone: bool = False) -> None:
    """Have a module's tables make sparse gradients, and the strategy leave them alone; before it wraps the module.

    Args:
        module: With tables.
        strategy: That will train it.
        ngrams_alone: Whether tables of word pieces stay as they are.

    Raises:
        UserError: If the strategy shards parameters or the module has no such table.
    """
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise UserError(
            "optimizer.sparse_embeddings updates rows of whole tables, which trainer.strategy "
            f"{type(strategy).__name__} cuts into shards: take ddp, or leave optimizer.sparse_embeddings out."
        )
    tables = sparse_tables(module, ngrams_alone)
    if not tables:
        raise UserError(
            "optimizer.sparse_embeddings is for tables of which a step reads some rows (n-grams; if it is true, word "
            "pieces too, unless an objective predicts them by the same table), and nothing here has one: leave it out."
        )
    for table in tables.values():
        row_look_up.begin(table)
    if isinstance(strategy, DDPStrategy):
        held = set(tables.values())
        names = [name for name, one in module.named_parameters(remove_duplicate=False) if one in held]
        ignored = {*getattr(module, "_ddp_params_and_buffers_to_ignore", ()), *names}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)


def end(module: nn.Module) -> None:
    """Make a module's tables ordinary ones again."""
    for parameter in module.parameters():
        row_look_up.end(parameter)


def settle(module: nn.Module, *_: Any) -> None:
    """Bring a module's tables up to date with the weight decay; every process has to."""
    for parameter in module.parameters():
        row_look_up.settle(parameter)


@torch.no_grad()
def send_first(module: nn.Module) -> None:
    """Give all processes the tables of the first, as DDP does with all else; collective."""
    if together():
        for parameter in module.parameters():
            if row_look_up.has_sparse_gradient(parameter):
                distributed.broadcast(parameter.data, src=0)


@torch.no_grad()
def gather_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum up the rows of each sparse gradient, and take its mean over the processes; collective.

    Raises:
        UserError: If a gradient is of the whole table, which something else than a look-up has read.
    """
    for parameter in parameters:
        if not (row_look_up.has_sparse_gradient(parameter) and parameter.requires_grad):
            continue
        gradient = parameter.grad
        if gradient is not None and not gradient.is_sparse:
            raise UserError(
                f"A table of shape {tuple(parameter.shape)} has a gradient of all its rows, so that "
                "optimizer.sparse_embeddings cannot train it: an objective that computes with "
                "encoder.embeddings.token.weight says ties_embeddings = True."
            )
        gradient = None if gradient is None else gradient.coalesce()
        parameter.grad = mean_of_processes(parameter, gradient) if together() else gradient


def mean_of_processes(table: nn.Parameter, gradient: Tensor | None) -> Tensor:
    """The mean of all processes' gradients (V, D), without rows where none has any; collective."""
    own = 0 if gradient is None else len(gradient.values())
    numbers = gather_rows(torch.tensor([own], device=table.device)).tolist()
    # Of one row at least: nothing cannot be sent.
    most = max(1, *numbers)
    rows = torch.zeros(most, dtype=torch.int64, device=table.device)
    values = torch.zeros(most, table.shape[1], dtype=table.dtype, device=table.device)
    if gradient is not None:
        rows[:own], values[:own] = gradient.indices()[0], gradient.values()
    filled = torch.cat([torch.arange(place * most, place * most + n) for place, n in enumerate(numbers)])
    filled = filled.to(table.device)
    rows, values = gather_rows(rows)[filled], gather_rows(values)[filled]
    rows, places = rows.sort()
    unique, counts = rows.unique_consecutive(return_counts=True)
    mean = row_look_up.summed(values, places, counts) / processes()
    return row_look_up.sparse_rows(unique, mean, table.shape)


class SparseAdamW(Bfloat16MomentsAdamW):
    """AdamW that treats groups with `sparse` by rows; see this file's head.

    Such a table has no `beta1`. Its weight decay is exact for all rows at every step.
    """

    def step(self, closure: Any = None) -> Any:
        """As AdamW's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tables = [(table, group) for group in self.param_groups if group.get("sparse") for table in group["params"]]
        for table, group in tables:
            if table.grad is not None:
                self._update_rows(table, group)
        with without_gradients(table for table, _ in tables):
            super().step()
        return loss

    @torch.no_grad()
    def _update_rows(self, table: nn.Parameter, group: dict[str, Any]) -> None:
        state, gradient, beta2 = self.state[table], cast(Tensor, table.grad).coalesce(), group["betas"][1]
        rows, values = gradient.indices()[0], gradient.values()
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state[ROW_MOMENT] = torch.zeros(len(table), dtype=torch.float32, device=table.device)
        state["step"] += 1
        # One number a row: that all of them fade at each step costs nothing.
        moment = state[ROW_MOMENT].mul_(beta2)
        squares = torch.linalg.vector_norm(values, dim=1, dtype=torch.float32).square() / values.shape[1]
        moment.index_add_(0, rows, squares, alpha=1.0 - beta2)
        scale = (moment[rows] / (1.0 - beta2 ** float(state["step"]))).sqrt() + group["eps"]
        row_look_up.decay(table, 1.0 - group["lr"] * group["weight_decay"])
        factor = group["lr"] / row_look_up.pending_decay(table)
        table.index_add_(0, rows, values * (factor / scale)[:, None].to(values.dtype), alpha=-1.0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As AdamW's, but the rows' moments stay in float32, as they were saved, whatever the table is in."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        own = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved, own, strict=True):
            moment = state_dict["state"].get(number, {}).get(ROW_MOMENT)
            if moment is not None:
                self.state[parameter][ROW_MOMENT] = moment.to(parameter.device, copy=True)
