"""What a step holds in memory between its forward and its backward pass, which is what limits a batch.

Counted on any device, from what autograd keeps; parameters, their gradients and the optimiser's are no part of it,
since they do not grow with the batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def bytes_kept(loss: Callable[[], Tensor], model: torch.nn.Module, dtype: torch.dtype) -> int:
    """Bytes of all tensors that the backward pass needs, memory that several share counted once.

    Args:
        loss: Does a forward pass.
        model: Whose parameters and buffers are not counted.
        dtype: Of autocast; float32 for none.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    device = next(model.parameters()).device
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
    ):
        # Until it ends, what is kept is not freed, so that no address comes twice.
        value = loss()
    del value
    return sum(kept.values())
