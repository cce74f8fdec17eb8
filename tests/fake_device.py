"""Run a module on a GPU that is not there: shapes and devices are checked, nothing is computed."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def to_fake_cuda(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Move what `module.to("cuda")` would move (parameters and buffers, nothing else) to a fake GPU."""
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
    return module
