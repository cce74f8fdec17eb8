"""Pictures on the shared Transformer: ViT's encoder (Dosovitskiy et al. 2021, arXiv:2010.11929), answering the same
questions as timm's models do (forward_features, forward_head, group_matcher, ...).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from lit_pretrain.backbone.config import VisionTransformerConfig, VitSize
from lit_pretrain.backbone.float32 import Float32State
from lit_pretrain.backbone.patch_embeddings import PatchEmbeddings
from lit_pretrain.backbone.pooling import AttentionPooling, mean_pool
from lit_pretrain.backbone.public_weights import copy_public_weights
from lit_pretrain.backbone.transformer import Transformer, initialise, norm_of
from lit_pretrain.errors import UserError
from lit_pretrain.weights import huggingface_vit, timm_settings, timm_vit
from lit_pretrain.weights.public import PublicWeights


class VisionEncoder(Float32State):
    """Pictures in, one feature vector a patch out.

    Args:
        image_size: Pixels of a side of the (square) pictures; others work, with their positions resized.
        patch_size: Pixels of a side of the patches that become tokens.
        channels: Channels of a picture.
        size: A published ViT size, which sets the Transformer's depth, width and heads; null keeps `transformer`'s.
        transformer: Settings of the shared Transformer.
        class_token: Whether a learned token stands before the patches (ViT).
        registers: Number of further learned tokens before the patches (DINOv2 has 4 in one variant).
        positions: `learned`, or `sincos`: fixed sines and cosines of row and column.
        class_position: Whether class token and registers have a learned position too (ViT; not in DeiT III).
        embedding_norm: Whether tokens are normalised before the first block (CLIP).
        patch_bias: Whether the patch embedding has a bias (not in CLIP).
        pooling: How `forward_head` makes one vector: `mean` of the patches, `cls` or `map` (attention, SigLIP).
        norm_after_pooling: Whether the final norm comes after the pooling instead of before it.
        mean: Of each channel, subtracted by `normalize`.
        std: Of each channel, by which `normalize` divides.

    Attributes:
        crop_share: Share of a picture's shorter side that evaluation looks at (timm's crop_pct): what is trained with
            squares of S pixels sets image_size / S, public weights bring theirs. None is unknown, and taken as 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 4,
        channels: int = 3,
        size: VitSize | None = None,
        transformer: VisionTransformerConfig = VisionTransformerConfig(),  # noqa: B008 (frozen, so sharing is safe)
        class_token: bool = True,
        registers: int = 0,
        positions: Literal["learned", "sincos"] = "learned",
        class_position: bool = True,
        embedding_norm: bool = False,
        patch_bias: bool = True,
        pooling: Literal["cls", "mean", "map"] = "mean",
        norm_after_pooling: bool = False,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        config = transformer if size is None else transformer.sized(size)
        if norm_after_pooling:
            config = replace(config, final_norm=False)
        check_settings(image_size, patch_size, channels, registers, class_token, pooling, mean, std)
        if config.attention_window is not None:
            raise UserError(
                f"transformer.attention_window is {config.attention_window}, which counts tokens along a text, and "
                "patches lie in rows and columns: leave it out."
            )
        if positions == "sincos" and config.width % 4:
            raise UserError(
                f"Sine-cosine positions need a width that is a multiple of 4, and transformer.width is {config.width}: "
                "change it, or take positions: learned."
            )
        self.image_size = image_size
        self.patch_size = patch_size
        self.channels = channels
        self.class_token = class_token
        self.registers = registers
        self.positions = positions
        self.class_position = class_position
        self.embedding_norm = embedding_norm
        self.patch_bias = patch_bias
        self.pooling = pooling
        self.norm_after_pooling = norm_after_pooling
        self.channel_means, self.channel_stds = tuple(mean), tuple(std)
        self.crop_share: float | None = None
        self.width = config.width
        self.grid_size = image_size // patch_size
        self.patches = self.grid_size**2
        self.prefix_tokens = int(class_token) + registers
        self.transformer = Transformer(config)
        self.pooler = AttentionPooling(config) if pooling == "map" else None
        self.pooled_norm = norm_of(config) if norm_after_pooling else nn.Identity()
        initialise(self)
        self.embeddings = PatchEmbeddings(
            patch_size,
            channels,
            config.width,
            self.grid_size,
            class_token,
            registers,
            positions,
            class_position,
            embedding_norm,
            config.norm_epsilon,
            patch_bias,
            config.dropout,
            config.norm,
            config.norm_bias,
        )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    # -- what it is made of

    @property
    def config(self) -> VisionTransformerConfig:
        """Settings of the Transformer inside."""
        return cast(VisionTransformerConfig, self.transformer.config)

    def settings(self) -> dict[str, Any]:
        """Arguments that build this encoder again, primitives only; `VisionEncoder.from_settings` reads them."""
        names = ["image_size", "patch_size", "channels", "class_token", "registers", "positions", "class_position"]
        names += ["embedding_norm", "patch_bias", "pooling", "norm_after_pooling", "crop_share"]
        settings = {"transformer": asdict(self.config), "mean": self.channel_means, "std": self.channel_stds}
        return settings | {name: getattr(self, name) for name in names}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> "VisionEncoder":
        """Build an encoder from what `settings` returned; its weights are fresh."""
        arguments = settings | {"transformer": VisionTransformerConfig(**settings["transformer"])}
        crop_share = arguments.pop("crop_share", None)
        encoder = cls(**arguments)
        encoder.crop_share = crop_share
        return encoder

    @classmethod
    def from_public(cls, weights: PublicWeights) -> "VisionEncoder":
        """Build an encoder that computes what a public checkpoint does, in evaluation mode; its head is left to others.

        Raises:
            UserError: If its tensors are not those that its settings ask for.
        """
        encoder = cls.from_settings(weights.settings)
        copy_public_weights(encoder, weights)
        return encoder.eval()

    @classmethod
    def from_pretrained(cls, source: str | Path, architecture: str | None = None, **others: Any) -> "VisionEncoder":
        """Load public ViT weights, in evaluation mode; what is left out, as classifiers are, is said.

        Args:
            source: Of timm, a name, file or directory: see `lit_pretrain.weights.timm_vit.load_weights`. Of
                transformers, a directory: see `lit_pretrain.weights.huggingface_vit`.
            architecture: As for timm's.
            **others: As for timm's.

        Raises:
            UserError: If it cannot be had or read, is no ViT of ours, does not tell what it computes, or a tensor is
                missing or unexpected.
        """
        if huggingface_vit.model_type(Path(source)) in (*huggingface_vit.KINDS, *huggingface_vit.PAIRS):
            weights = huggingface_vit.load_weights(Path(source))
        else:
            weights = timm_vit.load_weights(source, architecture, **others)
        weights.report_left_out()
        return cls.from_public(weights)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write weights that timm loads; see `lit_pretrain.weights.timm_vit.save_weights`."""
        tensors = self.state_dict()
        if self.positions == "sincos":
            tensors["embeddings.position"] = self.embeddings.fixed_position
        timm_vit.save_weights(self.settings() | {"transformer": asdict(self.config.resolved())}, tensors, directory)

    def fits_public_format(self) -> bool:
        """Whether timm's ViT has a place for all of it, so that `save_pretrained` can write it."""
        try:
            timm_settings.refuse_what_timm_lacks(self.settings() | {"transformer": asdict(self.config.resolved())})
        except UserError:
            return False
        return True

    # -- how pictures are framed

    @property
    def framed_size(self) -> int:
        """Pixels to which a picture's shorter side is resized before its middle, `image_size` wide, is looked at."""
        # Rounded down as timm does, but for the last bits of image_size / (image_size / S).
        return math.floor(self.image_size / (self.crop_share or 1.0) + 1e-6)

    def frame_as_stored(self, stored_size: int, training: bool) -> None:
        """Look from now on at what the middle of squares of `stored_size` pixels shows, of pictures of any size.

        Args:
            stored_size: Of the data.
            training: Whether the data is trained on; else what the weights bring is kept.
        """
        if training or self.crop_share is None:
            self.crop_share = min(1.0, self.image_size / stored_size)

    def frame(self, images: Tensor) -> Tensor:
        """The view of evaluation, the same in validation, test, prediction, probes and exports.

        Args:
            images: (B, C, S, S) uint8 squares of any size S.

        Returns:
            (B, C, image_size, image_size) float32 in [0, 1]: the middle of the squares resized to `framed_size`
            (bilinear, antialiased), which are not touched if S is that already.
        """
        size, framed = self.image_size, self.framed_size
        start = round((framed - size) / 2)  # torchvision's middle
        inside = slice(start, start + size)
        if images.shape[-1] == framed:
            return images[..., inside, inside].to(torch.float32).div_(255.0)
        views = images.to(torch.float32).div_(255.0)
        views = functional.interpolate(views, (framed, framed), mode="bilinear", align_corners=False, antialias=True)
        return views[..., inside, inside].clamp(0.0, 1.0)

    # -- timm's protocol

    def normalize(self, images: Tensor) -> Tensor:
        """(images - mean) / std, for (B, C, H, W) pictures in [0, 1]."""
        return (images - self.mean) / self.std

    def forward_features(self, images: Tensor, keep: Tensor | None = None, with_positions: bool = True) -> Tensor:
        """Encode pictures.

        Args:
            images: (B, C, H, W) float, through `normalize`; H and W any multiples of the patch size.
            keep: (B, K) integers, the patches (row by row) that enter; the others are left out. Null means all N.
            with_positions: Whether patches carry their positions.

        Returns:
            (B, prefix + N or K, D) features: class token and registers first.

        Raises:
            UserError: If the pictures cannot be cut into patches.
        """
        return self.transformer(self.embeddings(images, keep, with_positions))

    def forward_intermediates(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Features after some blocks, for probing; see `Transformer.forward_intermediates`.

        Args:
            images: As for `forward_features`.
            indices: Which blocks, from 0, or negative from the end.

        Returns:
            (B, prefix + N, D) for every index, the last block's with the final norm.
        """
        return self.transformer.forward_intermediates(self.embeddings(images), indices)

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, prefix + N, D) without class token and registers, (B, N, D)."""
        return tokens[:, self.prefix_tokens :]

    def forward_head(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Pool features to one vector a picture.

        Args:
            tokens: (B, prefix + N, D), from `forward_features`.
            attention_mask: (B, prefix + N), True where a token is real; null when all are.

        Returns:
            (B, D): of the class token, or of all patches.
        """
        if self.pooling == "cls":
            return self.pooled_norm(tokens[:, 0])
        real = None if attention_mask is None else attention_mask[:, self.prefix_tokens :]
        pool = mean_pool if self.pooler is None else self.pooler
        return self.pooled_norm(pool(self.patch_tokens(tokens), real))

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features (B, D) of normalised pictures (B, C, H, W)."""
        return self.forward_head(self.forward_features(images))

    def no_weight_decay(self) -> set[str]:
        """Parameters that must not decay although they have several dimensions: learned tokens, positions, queries."""
        names = {"embeddings.position", "embeddings.class_token", "embeddings.registers", "pooler.attention.latent"}
        return names & {name for name, _ in self.named_parameters()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that say which layer a parameter belongs to, in timm's form, for layer decay and freezing.

        The embeddings, every block, and what follows the last block: depth + 2 layers, as in MAE's fine-tuning
        (arXiv:2111.06377). There is no coarser grouping.
        """
        return {
            "stem": r"^embeddings",
            "blocks": r"^transformer\.blocks\.(\d+)",
            "head": r"^(?:transformer\.final_norm|pooled_norm|pooler)",
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute each block's activations in the backward pass."""
        self.transformer.set_grad_checkpointing(enable)

    def compile_blocks(self) -> None:
        """Compile every block of the Transformer in place."""
        self.transformer.compile_blocks()


def check_settings(
    image_size: int,
    patch_size: int,
    channels: int,
    registers: int,
    class_token: bool,
    pooling: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Refuse, in one sentence, what cannot be built."""
    for name, value, least in (
        ("image_size", image_size, 1),
        ("patch_size", patch_size, 1),
        ("channels", channels, 1),
        ("registers", registers, 0),
    ):
        if value < least:
            raise UserError(f"encoder.{name} is {value}: give at least {least}.")
    if image_size % patch_size:
        raise UserError(
            f"encoder.patch_size {patch_size} does not divide encoder.image_size {image_size}: choose a patch size "
            "that does."
        )
    if not len(mean) == len(std) == channels:
        raise UserError(
            f"encoder.mean has {len(mean)} values and encoder.std {len(std)} for {channels} channels: give one each "
            "for every channel."
        )
    if min(std) <= 0:
        raise UserError(f"encoder.std is {list(std)}: give values above 0, for the pictures are divided by them.")
    if pooling == "cls" and not class_token:
        raise UserError("pooling: cls reads the class token, and class_token is false: set it, or take pooling: mean.")
