"""What Lightning's strategies are told of a module before they wrap it, and how a sharded one is run by one process.

DDP (Li et al. 2020, arXiv:2006.15704) sends all buffers before each forward pass unless it is told that they are
constant. FSDP (Zhao et al. 2023, arXiv:2304.11277) gathers one unit of parameters at a time, which takes a policy that
says what a unit is: a block of a Transformer here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import CustomPolicy

from lit_pretrain.backbone.float32 import Float32State
from lit_pretrain.backbone.transformer import Block
from lit_pretrain.errors import UserError


class BlockPolicy(CustomPolicy):
    """Every block of a module is a unit of FSDP, but for blocks that hold parameters of another block too.

    FSDP replaces a unit at one place in the module and would leave the other place with the sharded weights, so that
    shared blocks belong to the unit of the whole module.

    Args:
        module: Which is to be wrapped.
    """

    def __init__(self, module: nn.Module) -> None:
        holders: dict[nn.Parameter, set[str]] = {}
        for name, block in module.named_modules(remove_duplicate=False):
            if isinstance(block, Block):
                for parameter in block.parameters():
                    holders.setdefault(parameter, set()).add(name)
        shared = {parameter for parameter, names in holders.items() if len(names) > 1}
        super().__init__(
            lambda one: isinstance(one, Block) and not any(parameter in shared for parameter in one.parameters())
        )


def check_strategy(strategy: Strategy) -> None:
    """Refuse what would train without a word something else than what is asked.

    Raises:
        UserError: In one sentence.
    """
    if isinstance(strategy, ModelParallelStrategy):
        raise UserError(
            "trainer.strategy is ModelParallelStrategy, which leaves it to the module to be cut into parts, and those "
            "of lit_pretrain are not, so that every process would train a model of its own: take fsdp, which shards "
            "parameters, gradients and optimiser states (configs/trainer/fsdp.yaml), or ddp."
        )


def prepare_for(strategy: Strategy, module: nn.Module) -> None:
    """Tell a strategy about the module that it wraps next; settings that a person gave it stay.

    Args:
        strategy: The trainer's, before its `setup`.
        module: Whole, with all parameters.

    Raises:
        UserError: As `check_strategy`; or if parameters that stay in float32 would have to share memory with others of
            16 bits, as those of one unit of FSDP do.
    """
    check_strategy(strategy)
    if isinstance(strategy, DDPStrategy):
        counting = any(isinstance(submodule, nn.modules.batchnorm._BatchNorm) for submodule in module.modules())
        strategy._ddp_kwargs.setdefault("broadcast_buffers", counting)
        strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)
    elif isinstance(strategy, FSDPStrategy):
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
        own_policy = strategy.kwargs.get("auto_wrap_policy")
        if own_policy is None or isinstance(own_policy, BlockPolicy):
            strategy.kwargs["auto_wrap_policy"] = BlockPolicy(module)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP has wrapped a module, or a part of it."""
    return bool(FullyShardedDataParallel.fsdp_modules(model))


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
