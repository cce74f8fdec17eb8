"""An encoder that grows: cheap stages first, embeddings alone or few blocks, then more blocks, positions or pixels.

Blocks are added after the last one such that the encoder computes what it did before: their branches start at zero, as
in Net2Net (Chen et al. 2016, arXiv:1511.05641) and Fixup (Zhang et al. 2019, arXiv:1901.09321, section 3), and the
gradient of what ends a branch is not zero, so that they learn from the first step. Stacking copies of trained blocks
(Gong et al. 2019) would change the outputs, and there is nothing to copy where there is no block. Positions are
interpolated: those of texts linearly, those of pictures as for other grids (`backbone.patch_embeddings`).
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.backbone.config import Activation
from lit_pretrain.backbone.transformer import Block
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.modules.starting_points import GROWN, StartingPoint, load_starting_point, without_weights

# What only an encoder without blocks can still choose.
BLOCK_OPTIONS = ("heads", "feed_forward_width", "norm_order", "activation")
# Of these, what attention pooling is made of as well.
POOLING_OPTIONS = ("heads", "feed_forward_width", "activation")
# Up to which epsilon a norm of what is normalised already is the same to about 1e-5, in the first case, and to 1e-6.
# The variance that the first of the two divides by is about 1 between blocks, that of a sum of embeddings 1e-3 or less.
LARGEST_EPSILON_OF_BLOCKS = 1e-5
LARGEST_EPSILON_OF_EMBEDDINGS = 1e-9


@dataclass(frozen=True)
class GrowthConfig:
    """How large the encoder of `init_from` becomes; nothing given, it stays as it is.

    Args:
        depth: Blocks that it then has. The new ones are the last ones, and start such that its outputs stay the same.
        max_positions: Rows that the learned position table of a text encoder then has, interpolated linearly.
        image_size: Pixels of a side of the pictures that it then takes; learned positions are interpolated.
        heads: Attention heads of the new blocks; this and what follows only for an encoder that has no block yet, whose
            settings they take the place of.
        feed_forward_width: Features inside the new blocks' feed-forward.
        norm_order: `post` or `pre`, of the new blocks.
        activation: Of the new blocks.
    """

    depth: int | None = None
    max_positions: int | None = None
    image_size: int | None = None
    heads: int | None = None
    feed_forward_width: int | None = None
    norm_order: Literal["post", "pre"] | None = None
    activation: Activation | None = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("depth", "max_positions", "image_size", "heads", "feed_forward_width"):
            check_number(f"model.grow.{name}", getattr(self, name), least=1)
        if self.depth is None and self.block_options:
            raise UserError(
                f"model.grow.{next(iter(self.block_options))} is of blocks that are added, and none is: give "
                "model.grow.depth too, or leave it out."
            )

    @property
    def given(self) -> dict[str, Any]:
        """What is given, by name; empty if nothing grows."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def block_options(self) -> dict[str, Any]:
        """What is given of the new blocks' settings."""
        return {name: value for name, value in self.given.items() if name in BLOCK_OPTIONS}


def start_from(init_from: str, pretrained: bool, architecture: str | None, growth: GrowthConfig) -> StartingPoint:
    """What `model.init_from` names, grown; its architecture and tokenizer alone where the weights are not wanted.

    Raises:
        UserError: If it is nothing that a training can start from, or cannot grow so.
    """
    start = grow(load_starting_point(init_from, architecture=architecture), growth)
    return start if pretrained else without_weights(start)


def check_growth(init_from: str | None, growth: GrowthConfig) -> None:
    """Refuse to let an encoder grow that is only about to be made."""
    if init_from is None and growth.given:
        name = next(iter(growth.given))
        raise UserError(
            f"model.grow.{name} lets the encoder of model.init_from grow, and that is not given: set the {name} of "
            "model.encoder itself."
        )


def grow(start: StartingPoint, config: GrowthConfig) -> StartingPoint:
    """The same weights in a larger encoder.

    With more blocks it computes the same features in evaluation mode, to 1e-6, and pooled ones too. `pre` norms leave
    what passes by as it is. `post` norms would normalise it again: the last norm's gain and bias become those of the
    last new block, and the norms before that, which have none then, do nothing to what is normalised but for their
    epsilon e. A token whose variance before the norm was v is multiplied by about 1 + (1 / v - 1) e / 2, which no gain
    can undo, as v is the token's own: that is below rounding for BERT's 1e-12, and some 1e-6 for RoBERTa's 1e-5.

    Args:
        start: Where from.
        config: What grows.

    Returns:
        A starting point that lists the new parameters as `fresh` and the former sizes in its lineage, as
        `grown_from_depth` and the like; `start` itself if nothing grows. A gain that has moved is not new.

    Raises:
        UserError: If it would not be larger, is of the other modality, or cannot keep its outputs.
    """
    if not config.given:
        return start
    encoder = start.encoder
    settings, tensors, sizes = encoder.settings(), encoder.state_dict(), {}
    if config.max_positions is not None:
        sizes["max_positions"] = grow_positions(encoder, config.max_positions, settings, tensors)
    if config.image_size is not None:
        sizes["image_size"] = grow_grid(encoder, config.image_size, settings, tensors)
    if config.depth is not None:
        check_depth(encoder, config)
        sizes["depth"] = encoder.config.depth
        changes = {"depth": config.depth} | config.block_options
        if encoder.config.depth == 0 and encoder.config.norm_order == "post" and config.norm_order == "pre":
            # There was no norm at the end, and a new one would change the outputs.
            changes["final_norm"] = False
        settings["transformer"] |= changes
    grown = type(encoder).from_settings(settings)
    if config.depth is not None:
        move_last_norm(encoder, grown, tensors)
        for block in list(grown.transformer.blocks)[encoder.config.depth :]:
            start_at_zero(cast(Block, block))
    missing, unexpected = grown.load_state_dict(tensors, strict=False)
    assert not unexpected, unexpected
    return replace(
        start,
        encoder=grown.train(encoder.training),
        fresh=sorted({*start.fresh, *missing}),
        lineage=start.lineage | {f"{GROWN}{name}": str(size) for name, size in sizes.items()},
    )


def check_larger(name: str, given: int, size: int) -> None:
    """Refuse what is no growth."""
    if given <= size:
        raise UserError(
            f"model.grow.{name} is {given}, and the encoder of model.init_from has {size}"
            + (" already: leave it out, or give more." if given == size else ": give more, or leave it out.")
        )


def check_depth(encoder: TextEncoder | VisionEncoder, config: GrowthConfig) -> None:
    """Refuse blocks that cannot be added.

    Raises:
        UserError: If they are no more than there are, have settings of their own where others are there, or cannot keep
            the outputs.
    """
    depth, options, given = encoder.config.depth, config.block_options, encoder.config
    check_larger("depth", cast(int, config.depth), depth)
    if depth and options:
        raise UserError(
            f"model.grow.{next(iter(options))} is of an encoder without blocks, and that of model.init_from has "
            f"{depth}, whose settings the new ones share: leave {', '.join(options)} out."
        )
    if encoder.pooling == "map" and (taken := [name for name in options if name in POOLING_OPTIONS]):
        raise UserError(
            f"model.grow.{taken[0]} would change the attention that the encoder of model.init_from pools with: leave "
            f"{', '.join(taken)} out."
        )
    heads = config.heads or given.resolved_heads
    if given.width % heads:
        raise UserError(
            f"model.grow.heads is {heads}, which does not divide the encoder's width {given.width}: choose a number "
            "that does."
        )
    if (config.norm_order or given.norm_order) == "pre":
        return
    ends_in_norm = given.norm_order == "pre" and given.final_norm
    if depth == 0 and not ends_in_norm and isinstance(encoder.embeddings.norm, nn.Identity):
        raise UserError(
            "Blocks of norm_order: post would normalise what the encoder of model.init_from does not (it has no block "
            "and embedding_norm: false), and so change its outputs: set model.grow.norm_order to pre."
        )
    limit = LARGEST_EPSILON_OF_BLOCKS if depth else LARGEST_EPSILON_OF_EMBEDDINGS
    if given.norm_epsilon > limit:
        raise UserError(
            f"Blocks of norm_order: post would normalise what is normalised already, which with the encoder's "
            f"norm_epsilon of {given.norm_epsilon:g} changes its outputs (up to {limit:g} does not): "
            + ("leave model.grow.depth out." if depth else "set model.grow.norm_order to pre.")
        )


def move_last_norm(
    encoder: TextEncoder | VisionEncoder, grown: TextEncoder | VisionEncoder, tensors: dict[str, Tensor]
) -> None:
    """Let the last norm of `post` blocks be the last one again, with its gain and bias.

    Args:
        encoder: As it was.
        grown: Deeper.
        tensors: State of `encoder`, which is changed into that of `grown` but for what is new.
    """
    if grown.config.norm_order == "pre":
        return
    if encoder.config.depth:
        last = f"transformer.blocks.{encoder.config.depth - 1}.feed_forward_norm"
    elif encoder.config.norm_order == "pre" and encoder.config.final_norm:
        last = "transformer.final_norm"
    else:
        last = "embeddings.norm"
    end = f"transformer.blocks.{grown.config.depth - 1}.feed_forward_norm"
    for kind, neutral in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
        if f"{last}.{kind}" not in tensors:
            continue
        tensors[f"{end}.{kind}"] = given = tensors.pop(f"{last}.{kind}")
        if last != "transformer.final_norm":
            # In the place of the final norm is the first new block's.
            tensors[f"{last}.{kind}"] = neutral(given)


@torch.no_grad()
def start_at_zero(block: Block) -> None:
    """Let what the branches add be zero, and its gradient not.

    One factor of the last product is zero: LayerScale's gains where there are such, which may be tiny and would slow
    down weights of zero, and the projections' weights elsewhere. Were both zero, nothing would ever move.
    """
    gains = [*block.attention_branch.parameters(), *block.feed_forward_branch.parameters()]
    projections = [*block.attention.projection.parameters(), *block.feed_forward.contract.parameters()]
    for parameter in gains or projections:
        parameter.zero_()


def grow_positions(
    encoder: TextEncoder | VisionEncoder, max_positions: int, settings: dict[str, Any], tensors: dict[str, Tensor]
) -> int:
    """Lengthen a text encoder's position table; the first and the last row stay what they are.

    Args:
        encoder: As it was.
        max_positions: Rows.
        settings: Of the encoder, which are changed.
        tensors: Its state, which is changed.

    Returns:
        The rows that it had.

    Raises:
        UserError: If it has none, or not fewer.
    """
    if not isinstance(encoder, TextEncoder):
        raise UserError(
            "model.grow.max_positions is of texts, and model.init_from brings an encoder of pictures: give "
            "model.grow.image_size, or leave it out."
        )
    if encoder.positions == "rotary":
        raise UserError(
            "model.grow.max_positions is of a learned position table, and the encoder of model.init_from has rotary "
            "positions, which take texts of any length: leave it out."
        )
    check_larger("max_positions", max_positions, encoder.max_positions)
    rows = tensors["embeddings.position.weight"]
    longer = functional.interpolate(rows.float().T[None], max_positions, mode="linear", align_corners=True)[0].T
    tensors["embeddings.position.weight"] = longer.to(rows.dtype)
    settings["max_positions"] = max_positions
    return encoder.max_positions


def grow_grid(
    encoder: TextEncoder | VisionEncoder, image_size: int, settings: dict[str, Any], tensors: dict[str, Tensor]
) -> int:
    """Let an encoder take larger pictures; those of its class token and registers apart, positions are resampled.

    It computes what it did before of pictures of the new size, whose positions it resized at every step.

    Args:
        encoder: As it was.
        image_size: Pixels of a side.
        settings: Of the encoder, which are changed.
        tensors: Its state, which is changed.

    Returns:
        The pixels that it took.

    Raises:
        UserError: If it is of texts, or the size is not larger, or cannot be cut into patches.
    """
    if not isinstance(encoder, VisionEncoder):
        raise UserError(
            "model.grow.image_size is of pictures, and model.init_from brings an encoder of texts: give "
            "model.grow.max_positions, or leave it out."
        )
    check_larger("image_size", image_size, encoder.image_size)
    if image_size % encoder.patch_size:
        raise UserError(
            f"model.grow.image_size is {image_size}, which the encoder's patches of {encoder.patch_size} pixels do not "
            "divide: give a multiple."
        )
    if encoder.embeddings.position is not None:
        side = image_size // encoder.patch_size
        with torch.no_grad():
            tensors["embeddings.position"] = torch.cat(encoder.embeddings.positions_for((side, side)), dim=1)
    settings["image_size"] = image_size
    return encoder.image_size
