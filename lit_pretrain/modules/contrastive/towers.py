"""The two towers of contrastive pretraining: where each comes from, when it is trained, and what they share.

A tower that stays as it was pretrained is locked (LiT: Zhai et al. 2022, arXiv:2111.07991). One Transformer may serve
both modalities (CLIPPO: Tschannen et al. 2023, arXiv:2212.08045; MS-CLIP: You et al. 2022, arXiv:2207.12661, which
found it best to share attention and feed-forward and to leave the layer norms to each).
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, cast

import torch.nn.functional as functional
from torch import Tensor, nn

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.backbone.transformer import Block
from lit_pretrain.errors import UserError, check_length, check_number
from lit_pretrain.modules.optimization import in_steps
from lit_pretrain.modules.starting_points import StartingPoint, load_starting_point, without_weights
from lit_pretrain.objectives.contrastive import Contrastive
from lit_pretrain.required import required

Sharing = Literal["none", "blocks", "blocks_except_norm"]
TowerName = Literal["text", "vision"]
# Features of an embedding where nothing tells.
DEFAULT_WIDTH = 256
# What the blocks must have alike to be the same modules.
SHARED_PARTS = ["depth", "width", "heads", "feed_forward_width", "activation", "bias", "attention_dropout"]
SHARED_PARTS += ["query_key_norm", "norm", "norm_bias"]
SHARED_BLOCKS = (*SHARED_PARTS, "norm_order", "norm_epsilon", "dropout", "stochastic_depth", "layer_scale")
SHARED_BLOCKS += ("first_attention_norm",)


@dataclass(frozen=True)
class TowerConfig:
    """Where a tower comes from and when it is trained.

    Args:
        init_from: A run, a checkpoint, a directory of public weights or a name of these, as `FineTuning.init_from`; of
            an open_clip checkpoint, or a contrastive pretraining of ours, this tower with its projection; null trains
            `text_encoder` or `vision_encoder` from scratch.
        pretrained: Whether `init_from`'s weights are taken; false takes its architecture and tokenizer only, with new
            weights: what pretraining is compared with.
        locked: Whether the encoder stays as it is; its projection is always trained.
        unlock_after: Steps (an integer) or share of all steps (0.1) after which a locked encoder is trained; null for
            never.
        learning_rate_factor: Of the encoder's learning rate; less than 1 spares what was pretrained.
        architecture: timm's name for the ViT whose weights a file holds, as `FineTuning.architecture`.
    """

    init_from: str | None = None
    pretrained: bool = True
    locked: bool = False
    unlock_after: int | float | None = None
    learning_rate_factor: float = 1.0
    architecture: str | None = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        check_length("unlock_after", self.unlock_after, above_zero=True)
        if self.unlock_after is not None and not self.locked:
            raise UserError(
                f"unlock_after is {self.unlock_after} with locked: {self.locked}: give it of a tower that is locked."
            )
        check_number("learning_rate_factor", self.learning_rate_factor, above=0)
        if self.architecture is not None and self.init_from is None:
            raise UserError(f"architecture is {self.architecture} without an init_from, a file of weights: give both.")
        if not self.pretrained and self.init_from is None:
            raise UserError(
                "pretrained is false without an init_from whose architecture would be taken: leave it out, an encoder "
                "of the config has new weights anyway."
            )

    @property
    def brings_weights(self) -> bool:
        """Whether the tower starts from trained weights."""
        return self.init_from is not None and self.pretrained

    @property
    def always_locked(self) -> bool:
        """Whether the encoder is never trained."""
        return self.locked and self.unlock_after is None

    def first_step(self, total_steps: int | float, name: str) -> int:
        """Optimiser step from which on the encoder is trained.

        Raises:
            UserError: If the training ends before.
        """
        step = max(1, in_steps(self.unlock_after, total_steps)) if self.unlock_after is not None else 0
        if step and step >= total_steps:
            raise UserError(
                f"model.{name}.unlock_after unlocks the tower at step {step}, and the training ends at step "
                f"{total_steps}: lower it, raise trainer.max_steps, or leave it out to keep the tower locked."
            )
        return step


Encoder = TypeVar("Encoder", bound=TextEncoder | VisionEncoder)


def starting_tower(name: TowerName, encoder: Encoder | None, config: TowerConfig, kind: type[Encoder]) -> StartingPoint:
    """A tower from scratch or from what was pretrained.

    Args:
        name: `text` or `vision`.
        encoder: To train from scratch, or null.
        config: Names what to start from, or nothing.
        kind: Class that the encoder must have.

    Raises:
        UserError: If none or both are given, or what is named is of the other modality.
    """
    if (encoder is None) == (config.init_from is None):
        raise UserError(
            f"The {name} tower takes either model.{name}_encoder, to train from scratch, or model.{name}.init_from, "
            "what it starts from: give one of the two."
        )
    if config.init_from is None:
        return StartingPoint(required(encoder), None, {"init_from": "scratch"})
    start = load_starting_point(config.init_from, name, config.architecture)
    if not isinstance(start.encoder, kind):
        raise UserError(
            f"model.{name}.init_from is {config.init_from}, which holds a {type(start.encoder).__name__}, and the "
            f"{name} tower is a {kind.__name__}: name another."
        )
    if isinstance(start.encoder, TextEncoder):
        start.encoder.check_pooling()
    if not config.pretrained:
        return without_weights(start)
    start.tell_left_out()
    return start


def width_of_embeddings(embedding_width: int | None, starts: dict[str, StartingPoint]) -> int:
    """Features of an embedding: as given, or those of the projections that towers start from, or 256.

    Raises:
        UserError: If these differ.
    """
    widths = {"model.embedding_width": embedding_width}
    for name, start in starts.items():
        if start.projection is not None:
            widths[f"the projection of model.{name}.init_from"] = len(start.projection)
    known_widths = {name: width for name, width in widths.items() if width is not None}
    if len(set(known_widths.values())) > 1:
        parts = " and ".join(f"{name} has {width}" for name, width in known_widths.items())
        raise UserError(
            f"Texts and pictures meet where embeddings have one width, and {parts}: set model.embedding_width to null, "
            "and start both towers from weights of one width."
        )
    return next(iter(known_widths.values()), DEFAULT_WIDTH)


def objective_of(own_objective: Contrastive | None, starts: dict[str, StartingPoint]) -> Contrastive:
    """The loss, with the temperature of the checkpoint that both towers start from.

    Args:
        own_objective: The person's, whose own temperature stays, or null for the checkpoint's kind of loss.
        starts: Both towers' by name.
    """
    text, vision = starts["text"], starts["vision"]
    same_checkpoint = text.log_scale is not None and text.lineage["init_from"] == vision.lineage["init_from"]
    loss: Literal["clip", "siglip"] = "siglip" if same_checkpoint and text.logit_bias is not None else "clip"
    objective = own_objective if own_objective is not None else Contrastive(loss)
    if same_checkpoint and objective.loss == loss and objective.temperature is None:
        objective.start_at(required(text.log_scale), text.logit_bias)
    return objective


def check_sharing(
    sharing: Sharing, text: TowerConfig, vision: TowerConfig, blocks_from: TowerName | None = None
) -> TowerName:
    """Refuse what one Transformer for both towers cannot be.

    Args:
        sharing: What is shared.
        text: Where the tower of texts starts from.
        vision: Where the tower of pictures starts from.
        blocks_from: Whose blocks serve both; null takes those of the one that is pretrained.

    Returns:
        Whose blocks serve both.

    Raises:
        UserError: In one sentence.
    """
    if sharing == "none":
        if blocks_from is not None:
            raise UserError(
                f"model.blocks_from is {blocks_from}, and each tower has blocks of its own: leave it out, or set "
                "model.share_weights to blocks or blocks_except_norm."
            )
        return "text"
    if blocks_from is None and text.brings_weights and vision.brings_weights:
        raise UserError(
            f"model.share_weights: {sharing} keeps the blocks of one tower, and both start from pretrained weights: "
            "set model.blocks_from to text or vision, whose blocks are kept."
        )
    for name in ("locked", "unlock_after", "learning_rate_factor"):
        if getattr(text, name) != getattr(vision, name):
            raise UserError(
                f"model.share_weights: {sharing} makes the blocks both towers' own, and model.text.{name} is "
                f"{getattr(text, name)} and model.vision.{name} {getattr(vision, name)}: give both the same."
            )
    return blocks_from or ("vision" if vision.brings_weights else "text")


def check_replays(replays: dict[str, Any], configs: dict[str, TowerConfig]) -> None:
    """Refuse to replay what a tower cannot forget.

    Raises:
        UserError: In one sentence.
    """
    for name, config in configs.items():
        if replays[name] is not None and config.always_locked:
            raise UserError(
                f"model.{name}.locked keeps the tower as it is, and model.{name}_replay would train nothing but heads: "
                f"leave one of the two out, or set model.{name}.unlock_after."
            )


class Tower(nn.Module):
    """An encoder, and the projection to where texts and pictures meet.

    Args:
        encoder: Answers (B, D) by `forward`.
        embedding_width: E.
        projection: (E, D) to start from; null for a new one.
    """

    def __init__(
        self, encoder: TextEncoder | VisionEncoder, embedding_width: int, projection: Tensor | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Linear(encoder.width, embedding_width, bias=False)
        nn.init.normal_(self.projection.weight, std=encoder.width**-0.5)
        if projection is not None:
            self.projection.load_state_dict({"weight": projection})
        self.evaluating = False

    def lock(self) -> None:
        """Stop the encoder's gradients and its dropout, for good."""
        self.encoder.requires_grad_(False)
        self.evaluating = True
        self.train(self.training)

    def train(self, mode: bool = True) -> "Tower":
        """As nn.Module's, but a locked encoder stays in evaluation mode."""
        super().train(mode)
        if self.evaluating:
            self.encoder.eval()
        return self

    @property
    def locked(self) -> bool:
        """Whether nothing of the encoder is trained."""
        return not any(parameter.requires_grad for parameter in self.encoder.parameters())

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings (B, E) of length 1, in float32 at least."""
        return self.project(self.encoder(**inputs))

    def project(self, features: Tensor) -> Tensor:
        """Embeddings (B, E) of length 1, in float32 at least, of the encoder's pooled features (B, D)."""
        return functional.normalize(at_least_float32(self.projection(features)), dim=-1)


def share(
    text: TextEncoder | VisionEncoder, vision: TextEncoder | VisionEncoder, sharing: Sharing, keep: TowerName = "text"
) -> None:
    """Let one Transformer serve both encoders: its blocks become the same modules.

    Embeddings, the norm after the last block and whatever pools are each encoder's own.

    Args:
        text: The encoder of texts.
        vision: The encoder of pictures.
        sharing: `blocks`, whole ones, or `blocks_except_norm`, their attention and feed-forward.
        keep: Whose weights remain.

    Raises:
        UserError: If the Transformers differ in what must be alike.
    """
    if sharing == "none":
        return
    text_settings, vision_settings = (asdict(encoder.config.resolved()) for encoder in (text, vision))
    names = SHARED_BLOCKS if sharing == "blocks" else SHARED_PARTS
    different = [
        f"{name} ({text_settings[name]} and {vision_settings[name]})"
        for name in names
        if text_settings[name] != vision_settings[name]
    ]
    if different:
        raise UserError(
            f"model.share_weights: {sharing} makes one Transformer of both, and the encoders of texts and pictures "
            f"differ in {', '.join(different)}: give both the same."
        )
    source, target = (text, vision) if keep == "text" else (vision, text)
    for index, block in enumerate(source.transformer.blocks):
        if sharing == "blocks":
            target.transformer.blocks[index] = block
        else:
            own, other = cast(Block, target.transformer.blocks[index]), cast(Block, block)
            own.attention, own.feed_forward = other.attention, other.feed_forward
