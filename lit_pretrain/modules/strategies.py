"""What Lightning's strategies are told of a module before they wrap it, and how a sharded one is run by one process.

DDP (Li et al. 2020, arXiv:2006.15704) sends all buffers before each forward pass unless it is told that they are
constant. FSDP (Zhao et al. 2023, arXiv:2304.11277) gathers one unit of parameters at a time, which takes a policy that
says what a unit is: a block of a Transformer here. FSDP2 (torch's `fully_shard`) does so with each parameter a DTensor,
cut along its first dimension; Lightning leaves it to the module to be cut, which is done here.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lit_pretrain.backbone.float32 import Float32State
from lit_pretrain.backbone.transformer import Block
from lit_pretrain.errors import UserError


class BlockPolicy(CustomPolicy):
    """Every block of a module is a unit of FSDP, but for those that `unit_blocks` leaves out.

    Args:
        module: Which is to be wrapped.
    """

    def __init__(self, module: nn.Module) -> None:
        units = set(unit_blocks(module))
        super().__init__(lambda one: one in units)


def unit_blocks(module: nn.Module) -> list[Block]:
    """The blocks of a module that are sharded by themselves: those that hold no parameters of another block too.

    FSDP replaces a unit at one place in the module and would leave the other place with the sharded weights, and FSDP2
    takes no parameter in two units, so that shared blocks belong to the unit of the whole module.
    """
    blocks: list[Block] = []
    holders: dict[nn.Parameter, set[str]] = {}
    for name, block in module.named_modules(remove_duplicate=False):
        if isinstance(block, Block):
            blocks.append(block)
            for parameter in block.parameters():
                holders.setdefault(parameter, set()).add(name)
    shared = {parameter for parameter, names in holders.items() if len(names) > 1}
    return [block for block in blocks if shared.isdisjoint(block.parameters())]


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes (`trainer.strategy: fsdp2`), on GPUs and on CPUs, with checkpoints of one ordinary file.

    Lightning's own has as many copies of a model as there are machines, cuts tensors within each, saves directories,
    and numbers the optimiser's moments by the module's parameters, where all other strategies do by the optimiser's, so
    that moments of their checkpoints would be taken for those of other parameters.

    Args:
        save_distributed_checkpoint: Whether each process writes its own shards, into a directory, and none needs the
            memory of the whole: training goes on from it with any number of processes, and all else needs the file that
            `python -m lightning.fabric.utilities.consolidate_checkpoint` makes of it. PyTorch reads such a directory's
            index by running pickled code: take only your own.
        process_group_backend: As Lightning's; null is `nccl` on GPUs, `gloo` on CPUs.
        timeout: As Lightning's.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        """As Lightning's, with every process a part of the one mesh; collective."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
        trainer = cast(Any, self.lightning_module).trainer
        for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop):
            # What is gathered in inference mode could not be trained afterwards.
            loop.inference_mode = False
        trainer.predict_loop.inference_mode = False

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights, in the first process alone unless each saves its shards; collective."""
        if self._save_distributed_checkpoint:
            return super().lightning_module_state_dict()
        return self._whole(cast(nn.Module, self.model).state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `lightning_module_state_dict`, of an optimiser."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        return self._whole(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        def on_first(value: Any) -> Any:
            value = whole(value)
            # One after the other, so that no more than one is whole on the device.
            return value.cpu() if isinstance(value, Tensor) and self.is_global_zero else None

        gathered_state = tree_map(lambda value: on_first(value) if isinstance(value, Tensor) else value, state)
        return gathered_state if self.is_global_zero else {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """As Lightning's; a directory is written beside the former one, which is there until the new one is whole."""
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(str(filepath)))
        part, former = (path.with_name(f".{path.name}.{ending}") for ending in ("part", "former"))
        if self.is_global_zero:
            shutil.rmtree(part, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, part, storage_options)
        self.barrier()
        if self.is_global_zero:
            shutil.rmtree(former, ignore_errors=True)
            if path.exists():
                path.rename(former)
            part.rename(path)
            shutil.rmtree(former, ignore_errors=True)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Take weights and moments of a checkpoint, whatever strategy has saved it, and return the rest; collective.

        Raises:
            UserError: If the weights are of another shape.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        if path.is_dir():
            return super().load_checkpoint(path, weights_only)
        module = cast(Any, self.lightning_module)
        checkpoint = self.checkpoint_io.load_checkpoint(path, weights_only=True)
        own = module.state_dict()
        state = {name: shard_like(own.get(name), value) for name, value in checkpoint.pop("state_dict").items()}
        try:
            module.load_state_dict(state, strict=module.strict_loading)
        except RuntimeError as error:
            reason = " ".join(str(error).splitlines()[1:2]).strip()
            raise UserError(
                f"The checkpoint {path} does not fit this config ({reason}): resume with its own run's config.yaml."
            ) from error
        for optimizer, saved in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            keys = [key for group in saved["param_groups"] for key in group["params"]]
            moments = dict(saved["state"])
            for key, parameter in zip(keys, parameters, strict=False):
                moments[key] = {name: shard_like(parameter, value) for name, value in moments.get(key, {}).items()}
            optimizer.load_state_dict(saved | {"state": moments})
        return checkpoint


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="Fully sharded data parallelism by fully_shard")


def whole(tensor: Any) -> Any:
    """A tensor with all of its shards, each process's own copy; anything else as it is; collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this process has, or all of a tensor that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(like: Any, value: Any) -> Any:
    """A whole tensor sharded as another of its shape, or as it is where that is not sharded or has another shape."""
    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def check_strategy(strategy: Strategy) -> None:
    """Refuse what would train without a word something else than what is asked.

    Raises:
        UserError: In one sentence.
    """
    if not isinstance(strategy, ModelParallelStrategy):
        return
    if not isinstance(strategy, FSDP2Strategy):
        raise UserError(
            "trainer.strategy is ModelParallelStrategy, which leaves it to the module to be cut: take fsdp2, "
            "which is this strategy for the modules of lit_pretrain and shards parameters, gradients and optimiser "
            "states (configs/trainer/fsdp2.yaml), or ddp."
        )
    if strategy.precision_plugin.precision == "16-mixed":
        raise UserError(
            "trainer.precision is 16-mixed, whose scaler looks for gradients that are not finite in each process by "
            "itself, which under fsdp2 has shards of them: set it to bf16-mixed."
        )


def shard(module: nn.Module, strategy: FSDP2Strategy) -> None:
    """Cut a module's parameters into shards, those of each block and those of the rest; collective.

    All processes take the first one's weights, as under DDP. A module that is sharded already stays as it is.

    Args:
        module: A LightningModule, whose `training_step` gathers the rest.
        strategy: That has its processes.
    """
    if isinstance(module, FSDPModule):
        return
    mesh = strategy.device_mesh["data_parallel"]
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            # On the device one by one, since that may not hold all of them.
            sent = tensor.detach().to(strategy.root_device)
            distributed.broadcast(sent, src=0)
            tensor.copy_(sent)
    for part in (*unit_blocks(module), module):
        kind = type(part)
        sharded = type(fully_shard(part, mesh=mesh))
        # Records and checkpoints tell the module's class by its name; configs must not find two of one path.
        sharded.__name__, sharded.__qualname__ = kind.__name__, f"shard.<locals>.{kind.__name__}"
        sharded.__module__ = kind.__module__
    register_fsdp_forward_method(module, "training_step")


def prepare_for(strategy: Strategy, module: nn.Module) -> None:
    """Tell a strategy about the module that it wraps next; settings that a person gave it stay.

    Args:
        strategy: The trainer's, before its `setup`.
        module: Whole, with all parameters.

    Raises:
        UserError: As `check_strategy`; or if parameters that stay in float32 would have to share memory, or gradients,
            with others of 16 bits, as those of one unit of FSDP do.
    """
    check_strategy(strategy)
    if isinstance(strategy, DDPStrategy):
        counting = any(isinstance(submodule, nn.modules.batchnorm._BatchNorm) for submodule in module.modules())
        strategy._ddp_kwargs.setdefault("broadcast_buffers", counting)
        strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)
    elif is_sharding(strategy):
        precision = strategy.precision_plugin.precision
        exact = [
            submodule
            for submodule in module.modules()
            if isinstance(submodule, Float32State) and [*submodule.parameters(recurse=False)]
        ]
        if precision in ("bf16-true", "16-true") and exact:
            raise UserError(
                f"trainer.precision is {precision}, and under FSDP the temperature of a contrastive loss cannot stay "
                "in float32 then, which it needs to learn: set it to bf16-mixed."
            )
        if isinstance(strategy, FSDP2Strategy):
            shard(module, strategy)
            return
        kwargs = cast(FSDPStrategy, strategy).kwargs
        own_policy = kwargs.get("auto_wrap_policy")
        if own_policy is None or isinstance(own_policy, BlockPolicy):
            kwargs["auto_wrap_policy"] = BlockPolicy(module)


def is_sharding(strategy: Strategy) -> bool:
    """Whether a strategy shards parameters, so that they have to be gathered where they are needed."""
    return isinstance(strategy, FSDPStrategy | ModelParallelStrategy)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP, or FSDP2, has sharded a module, or a part of it."""
    return any(isinstance(part, FullyShardedDataParallel | FSDPModule) for part in model.modules())


@contextmanager
def gathered(model: nn.Module, writeback: bool = False) -> Iterator[None]:
    """Within this, each process has all parameters of a module that FSDP shards, and runs it by itself; collective.

    Else every forward pass is collective, and of the whole. Evaluation runs parts by themselves (encoders for examples
    and panels), and not equally often in each process (captions in groups), which would wait for each other for ever.
    It takes the memory of all parameters. Of any other module nothing changes.

    Args:
        model: As the strategy has wrapped it.
        writeback: Whether changes of the parameters stay.
    """
    if isinstance(model, FSDPModule):
        with gathered2(model, writeback):
            yield
        return
    units = FullyShardedDataParallel.fsdp_modules(model)
    # Such a module has a `forward` of its own already.
    if not units or "forward" in vars(units[0]):
        yield
        return
    with FullyShardedDataParallel.summon_full_params(model, writeback=writeback):
        for unit in units:
            # Not by assignment, which would register it as a part.
            vars(unit)["forward"] = unit.module.__call__
        try:
            yield
        finally:
            for unit in units:
                del vars(unit)["forward"]


@contextmanager
def gathered2(model: FSDPModule, writeback: bool) -> Iterator[None]:
    """As `gathered`, of a module that FSDP2 shards: forward passes find all parameters there, and leave them."""
    state, module = model._get_fsdp_state(), cast(nn.Module, model)
    if getattr(state, "gathered", False):
        yield
        return
    # Else the first block that runs would be taken for the whole.
    state._lazy_init()
    units = [cast(FSDPModule, part) for part in module.modules() if isinstance(part, FSDPModule)]
    sharded = dict(module.named_parameters())
    for unit in units:
        unit.unshard()
    model.set_reshard_after_forward(False)
    vars(state)["gathered"] = True
    try:
        yield
        changed = (
            {name: parameter.detach().clone() for name, parameter in module.named_parameters()} if writeback else {}
        )
    finally:
        vars(state)["gathered"] = False
        for unit in units:
            # All but the whole's own, whose backward pass begins where its forward pass ends.
            unit.set_reshard_after_forward(unit is not model, recurse=False)
            unit.reshard()
    with torch.no_grad():
        for name, value in changed.items():
            sharded[name].copy_(shard_like(sharded[name], value))
