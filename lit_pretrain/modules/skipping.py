"""Steps that are left out because their gradients are not finite (`model.non_finite: skip`), counted.

One batch in a long training may break a loss, by a broken sample or a number that bf16 has no room for; a training of
days goes on without it, as large ones do (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1, skip batches around a
spike). Where every batch breaks it, the weights or the learning rate are at fault, and the training stops.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_pretrain.modules.statistics import Statistics
from lit_pretrain.modules.strategies import own_part

# Steps left out one after the other before a training is given up.
MOST_IN_A_ROW = 10


class SkippedSteps:
    """How many steps were left out.

    Attributes:
        total: Of the training, and of the one that it goes on with.
        in_a_row: Up to the last step.
    """

    def __init__(self) -> None:
        self.total = self.in_a_row = 0

    def take_out(self, optimizer: Optimizer) -> bool:
        """Take all gradients away if any of any process is not finite, so that the optimiser's step changes nothing.

        It waits for the device; collective.

        Returns:
            Whether it did.
        """
        if not take_out_broken(optimizer):
            self.in_a_row = 0
            return False
        self.total += 1
        self.in_a_row += 1
        return True


def take_out_broken(optimizer: Optimizer) -> bool:
    """Take all gradients away if any of any process is not finite; it waits for the device; collective.

    Returns:
        Whether it did.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if is_finite(gradients, parameters[0].device):
        return False
    for parameter in parameters:
        parameter.grad = None
    return True


def is_finite(gradients: list[Tensor], device: torch.device) -> bool:
    """Whether all gradients of all processes are finite; collective.

    Args:
        gradients: Of this process, perhaps none.
        device: Of the parameters, by which the processes talk to each other.
    """
    found = times_zero(gradients, device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(found)
    return bool(found == 0)


def times_zero(gradients: list[Tensor], device: torch.device) -> Tensor:
    """0 on a device, or NaN if a gradient is not finite. Norms of the parts would overflow where the numbers do not."""
    dense = [gradient.coalesce().values() if gradient.is_sparse else own_part(gradient) for gradient in gradients]
    if not dense:
        return torch.zeros((), device=device)
    return torch.stack([(gradient.detach() * 0).sum().float().to(device) for gradient in dense]).sum()


def without_broken(statistics: Statistics) -> Statistics:
    """Statistics of a batch, those of one with any that is not finite counted as nothing; it does not wait."""
    fine = torch.stack([total.float() for total, _ in statistics.values()]).isfinite().all()
    return {
        name: (torch.where(fine, total, torch.zeros_like(total)), torch.where(fine, count, torch.zeros_like(count)))
        for name, (total, count) in statistics.items()
    }
