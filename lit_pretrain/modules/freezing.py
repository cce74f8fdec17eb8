"""Which parts of a pretrained encoder are trained, and from when on.

Nothing frozen; the whole encoder (a linear probe); the first blocks; or gradual unfreezing from the last block to the
first (Howard and Ruder 2018, arXiv:1801.06146, section 3.3). What of the encoder is new, such as a pooling that the
pretrained one did not have, is part of the head and never frozen.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.errors import UserError, check_length, counted
from lit_pretrain.modules.optimization import in_steps, named_parameters


@dataclass(frozen=True)
class FreezingConfig:
    """Settings of freezing.

    Args:
        blocks: How many of the encoder's first blocks stay as they are, the embeddings with them; `all` for the whole
            encoder, so that only the head is trained.
        unfreeze_every: Gradual unfreezing: the head is trained at first, with what stands between the last block and
            it (final norm, pooling), and after every so many steps (an integer) or such a share of all steps (0.1) one
            more block is, from the last to the first that is not frozen, and then the embeddings; None
            trains all of them from the start.
        embeddings: Whether the embeddings stay as they are though no block does.
    """

    blocks: int | Literal["all"] = 0
    unfreeze_every: int | float | None = None
    embeddings: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.blocks != "all" and self.blocks < 0:
            raise UserError(f"model.freeze.blocks is {self.blocks}: give a number from 0, or all.")
        check_length("model.freeze.unfreeze_every", self.unfreeze_every, above_zero=True)
        if self.unfreeze_every is not None and self.blocks == "all":
            raise UserError(
                f"model.freeze.unfreeze_every is {self.unfreeze_every} with blocks: all: give a number of blocks that "
                "stay frozen."
            )


def freeze(
    encoder: TextEncoder | VisionEncoder, config: FreezingConfig, fresh: Collection[str] = ()
) -> list[nn.Module]:
    """Stop gradients where the encoder stays as it is.

    Args:
        encoder: With `embeddings`, `transformer.blocks` and timm's `group_matcher`.
        config: What is frozen.
        fresh: Names of the encoder's parameters that are new, and trained in any case.

    Returns:
        The frozen modules, which must stay in evaluation mode (no dropout where nothing learns).

    Raises:
        UserError: If there are fewer blocks.
    """
    check_blocks(encoder, config)
    if config.blocks == "all":
        frozen: list[nn.Module] = [encoder]
    elif config.blocks == 0:
        frozen = [encoder.embeddings] if config.embeddings else []
    else:
        frozen = [encoder.embeddings, *encoder.transformer.blocks[: config.blocks]]
    for module in frozen:
        module.requires_grad_(False)
    for name, parameter in named_parameters(encoder):
        if name in fresh:
            parameter.requires_grad_(True)
    return frozen


def check_blocks(encoder: TextEncoder | VisionEncoder, config: FreezingConfig) -> None:
    """Refuse to freeze more blocks than there are, which can be told before any data is read.

    Raises:
        UserError: In one sentence.
    """
    if config.blocks in ("all", 0):
        return
    depth = len(encoder.transformer.blocks)
    if cast(int, config.blocks) > depth:
        raise UserError(
            f"model.freeze.blocks is {config.blocks}, and the encoder has {counted(depth, 'block')}: give at most "
            "that, or all."
        )


def unfreezing_steps(
    encoder: TextEncoder | VisionEncoder, config: FreezingConfig, total_steps: int | float
) -> dict[int, int]:
    """From which step on each layer is trained; see `optimization.layers_of` for the layers' numbers.

    Args:
        encoder: As in `freeze`.
        config: With or without `unfreeze_every`.
        total_steps: Of the training.

    Returns:
        Layer -> optimiser step. Blocks wait by a learning rate of 0 rather than without gradients, so that processes
        agree on which gradients there are.

    Raises:
        UserError: If the training ends before the first trained block's turn.
    """
    last = encoder.config.depth + 1
    if config.unfreeze_every is None:
        return {layer: 0 for layer in range(last + 1)}
    every = max(1, in_steps(config.unfreeze_every, total_steps))
    steps = {layer: (last - layer) * every for layer in range(last + 1)}
    first = int(config.blocks) + 1 if config.blocks or config.embeddings else 0
    if steps[first] >= total_steps:
        raise UserError(
            f"model.freeze.unfreeze_every of {config.unfreeze_every} unfreezes the first layer at step {steps[first]}, "
            f"and the training ends at step {total_steps}: lower it, or raise trainer.max_steps."
        )
    return steps
