"""A training step, bare: no loader, no Lightning, no logging. Ours and a peer's differ in their loss only."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lit_pretrain.commands.benchmarks.contest import Contestant
from lit_pretrain.modules.optimization import AdamWConfig, make_optimizer
from lit_pretrain.modules.pretraining import Pretraining
from lit_pretrain.objectives import compute_objectives

LEARNING_RATE = 1e-4


def our_step(module: Pretraining, batch: dict[str, Tensor], dtype: torch.dtype) -> Contestant:
    """The step of a module as `fit` runs it, eager or compiled as the module says, always on the same batch.

    Args:
        module: Any pretraining; its heads are made here.
        batch: What its objectives read, on the device that it is to run on.
        dtype: Of autocast; float32 for none.
    """
    device = next(iter(batch.values())).device
    module.configure_model()
    module.to(device).train()
    generator = torch.Generator(device=device)

    def loss() -> Tensor:
        return module.sum_losses(compute_objectives(module.encoder, module.objectives, batch, generator))

    optimizer = make_optimizer(module.trained_modules(), AdamWConfig(learning_rate=LEARNING_RATE))
    name = f"ours, {manner(module.compile_blocks)}"
    return Contestant(name, training_step(loss, module.parameters(), optimizer, device, dtype))


def peer_step(
    name: str,
    model: torch.nn.Module,
    loss: Callable[[], Tensor],
    compiled: bool,
    dtype: torch.dtype,
    after: Callable[[], None] | None = None,
) -> Contestant:
    """The step of another library's model, with the optimiser that its users would take.

    Args:
        name: The library's.
        model: Whose parameters are trained.
        loss: Of the model, on the same batch always.
        compiled: Whether the loss runs compiled code, for the name.
        dtype: Of autocast; float32 for none.
        after: What is done after the optimiser's step.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, eps=1e-6, weight_decay=0.01, fused=True)
    step = training_step(loss, model.parameters(), optimizer, device, dtype, after)
    return Contestant(f"{name}, {manner(compiled)}", step)


def manner(compiled: bool) -> str:
    """What stands after the comma in a contestant's name."""
    return "compiled" if compiled else "eager"


def training_step(
    loss: Callable[[], Tensor],
    parameters: Iterable[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    dtype: torch.dtype,
    after: Callable[[], None] | None = None,
) -> Callable[[], None]:
    """Loss, backward pass, clipping at norm 1, optimiser's step, what is done after it, and the wait for the device."""
    parameters = list(parameters)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if after is not None:
            after()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)

    return step


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize()
