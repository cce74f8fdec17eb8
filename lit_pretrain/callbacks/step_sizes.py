"""How large gradients and steps are: the norm of the gradient before clipping, and of the update beside the weights'.

A norm that grows without end announces a training that diverges. The update's norm divided by the weights' is by rule
of thumb about 1e-3 (Karpathy, "Building makemore Part 3"): far above it a training is unstable, far below it slow.
"""

import math
from collections.abc import Iterator

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer

from lit_pretrain.tracking.run_record import log_figures
from lit_pretrain.trainer_state import log_interval_of

# Elements of the weights that are kept to be compared, about: 4 MB in fp32, whatever the model's size.
MOST_ELEMENTS = 2**20
# Of matrices in shards, which are kept whole or not at all.
MOST_ELEMENTS_IN_SHARDS = 2**24


class StepSizes(Callback):
    """Logs train/gradient_norm and train/update_ratio with the other figures of a training.

    The norm is that of the whole gradient, over all batches that a step accumulates and all processes, before it is
    clipped. The ratio is that of a million elements, or a few more: of larger models every n-th row of each weight
    matrix, so that little memory is needed. Only the steps that are logged are measured, and no other is waited for:
    every `log_every_n_steps`, and before the first of them steps 1, 2, 4, 8 and so on, since trainings that diverge
    often do so early, and so that one that ends before its first report has figures too.
    """

    def __init__(self) -> None:
        self._norm: Tensor | None = None
        self._before: list[tuple[Tensor, Tensor]] = []
        self._step = -1
        # Whether each process has pieces of the weights, as under FSDP.
        self._in_pieces = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure the gradient, and keep some weights."""
        interval = log_interval_of(trainer)
        step = trainer.global_step + 1
        if not trainer.loggers or not interval or not is_measured(step, interval):
            return
        # A step that is left out, for gradients that are not finite, is measured anew with the next batch.
        self._step = step
        self._norm = gradient_norm(trainer, optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._in_pieces = isinstance(trainer.strategy.model, FullyShardedDataParallel)
        chosen = pieces_of_matrices(trainer.strategy.model) if self._in_pieces else parameters
        self._before = [(rows, rows.clone()) for rows in rows_of_matrices(chosen, 1 if self._in_pieces else 2)]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Log, if a step was measured."""
        if self._step != trainer.global_step:
            return
        figures = {}
        if self._norm is not None:
            figures["train/gradient_norm"] = float(self._norm)
        if self._in_pieces:
            ratio = float(update_ratio_of_pieces(self._before, trainer.strategy.root_device))
            figures |= {"train/update_ratio": ratio} if math.isfinite(ratio) else {}
        elif self._before:
            figures["train/update_ratio"] = float(update_ratio(self._before))
        self._norm, self._before, self._step = None, [], -1
        if figures:
            log_figures(trainer, figures)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the weights."""
        self._norm, self._before, self._step = None, [], -1


def is_measured(step: int, interval: int) -> bool:
    """Whether sizes are taken at a step, the first being 1: at each report, and at powers of two before the first."""
    return step % interval == 0 or (step < interval and step & (step - 1) == 0)


def gradient_norm(trainer: Trainer, optimizer: Optimizer) -> Tensor | None:
    """Norm of all gradients of an optimiser together; collective under FSDP.

    Args:
        trainer: Its strategy decides where the gradients are.
        optimizer: Whose.

    Returns:
        A number on the device; null where rows of a table have gradients that are not yet put together over processes.
    """
    model = trainer.strategy.model
    if isinstance(model, FullyShardedDataParallel):
        # Without a bound nothing is clipped, and the norm is summed up over the ranks.
        return model.clip_grad_norm_(torch.inf)
    gradients = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                if trainer.world_size > 1:
                    return None
                gradients.append(parameter.grad.coalesce().values())
            else:
                gradients.append(parameter.grad)
    if not gradients:
        return None
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def pieces_of_matrices(model: torch.nn.Module | None) -> list[torch.nn.Parameter]:
    """What this process has of the weight matrices that FSDP shards; none where it keeps them as one vector.

    Vectors are left out: of a small model, weights of norms are the most of all weights' norm.
    """
    found = []
    for unit in FullyShardedDataParallel.fsdp_modules(model) if model is not None else []:
        flat = getattr(unit, "_flat_param", None)
        shapes, pieces = getattr(flat, "_shapes", ()), getattr(flat, "_params", None) or ()
        found += [piece for piece, shape in zip(pieces, shapes, strict=False) if len(shape) >= 2 and piece.numel()]
    return found


def rows_of_matrices(parameters: list[torch.nn.Parameter], dimensions: int = 2) -> Iterator[Tensor]:
    """Rows of the weight matrices that move, evenly over each, of about `MOST_ELEMENTS` together.

    Args:
        parameters: Of an optimiser.
        dimensions: What a parameter has at least; pieces of matrices have one.

    Yields:
        Views. Of matrices in shards (DTensor), of which a process cannot slice its own piece alone, some whole ones,
        evenly over all of them, and none that is larger than what is left.
    """
    matrices = [
        parameter
        for parameter in parameters
        if parameter.ndim >= dimensions and parameter.grad is not None and not parameter.grad.is_sparse
    ]
    total = sum(matrix.numel() for matrix in matrices)
    every_row, every_matrix = (max(1, -(-total // most)) for most in (MOST_ELEMENTS, MOST_ELEMENTS_IN_SHARDS))
    left = MOST_ELEMENTS_IN_SHARDS
    for place, matrix in enumerate(matrices):
        if not hasattr(matrix, "full_tensor"):
            yield matrix.detach()[::every_row]
        elif place % every_matrix == 0 and matrix.numel() <= left:
            left -= matrix.numel()
            yield matrix.detach()


def update_ratio(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Norm of the update divided by that of the weights.

    Args:
        pairs: Weights after and before the step.
    """
    with torch.no_grad():
        moved = [after.detach() - before for after, before in pairs]
        ratio = torch.nn.utils.get_total_norm(moved) / torch.nn.utils.get_total_norm([before for _, before in pairs])
    return ratio.full_tensor() if hasattr(ratio, "full_tensor") else ratio


def update_ratio_of_pieces(pairs: list[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """As `update_ratio`, of the pieces that all processes have; collective, whether or not one has any.

    Args:
        pairs: Pieces after and before the step.
        device: Of the process.
    """
    squares = torch.zeros(2, dtype=torch.float32, device=device)
    with torch.no_grad():
        for after, before in pairs:
            moved = after.detach() - before
            squares += torch.stack([moved.float().square().sum(), before.float().square().sum()])
    torch.distributed.all_reduce(squares)
    return (squares[0] / squares[1]).sqrt()  # not a number where there are none
