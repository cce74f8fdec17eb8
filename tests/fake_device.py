"""Run a module on a GPU that is not there: shapes, devices and waits are checked, nothing is computed."""

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import Metric

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
# These bring a tensor without dimensions from the CPU to the GPU; elsewhere it is handed to the kernel as a number.
BRINGING = (torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default, torch.ops.aten.where.self)


def to_fake_cuda(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Move what `module.to("cuda")` would move (parameters, buffers, metrics' states, nothing else) to a fake GPU."""
    with mode:
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(
                        torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                    )
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
            for name, state in part._defaults.items() if isinstance(part, Metric) else ():
                if isinstance(state, torch.Tensor):
                    setattr(part, name, torch.empty(state.shape, dtype=state.dtype, device="cuda"))
    return module


class NoWaiting(TorchDispatchMode):
    """Within a FakeTensorMode: raises where a program would wait for the GPU.

    FakeTensorMode itself raises where a value is asked for (`item`, `bool`, `nonzero`, a boolean index). What it lets
    through, and CUDA waits for, are copies between CPU and GPU: those of `torch.tensor(1.0, device="cuda")`, of a list
    as an index, or of the number in `values[indices] = 1.0`.
    """

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), settings: dict | None = None) -> Any:
        """Look at one operation and run it."""
        settings = settings or {}
        if function in COPIES:
            source = arguments[-1] if function is COPIES[0] else arguments[1]
            target = settings.get("device") or source.device if function is COPIES[0] else arguments[0].device
            waits = not settings.get("non_blocking", False) or source.device.type == "cpu"
            if source.device.type != target.type and waits:
                raise AssertionError(f"a copy from {source.device.type} to {target.type} is waited for")
        if function in BRINGING:
            devices = {one.device.type for one in arguments if isinstance(one, torch.Tensor)}
            if devices == {"cpu", "cuda"}:
                raise AssertionError(f"{function} copies a number to the GPU, which is waited for")
        return function(*arguments, **settings)
