"""Masked image modelling: the masked autoencoder (MAE; He et al. 2022, arXiv:2111.06377).

Most patches are left out. The encoder sees the others alone, which makes it cheap, and a light decoder, which is thrown
away afterwards, reconstructs the pixels of those that were hidden.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.config import VisionTransformerConfig
from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.backbone.patch_embeddings import cut_patches, sincos_positions
from lit_pretrain.backbone.transformer import Transformer, initialise
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies
from lit_pretrain.objectives.objective import Batch, EncoderPass, ObjectiveOutput, Vocabulary, global_mean
from lit_pretrain.objectives.picture_panels import grid
from lit_pretrain.objectives.rates import Rate, check_rate, rate_at
from lit_pretrain.objectives.vision_objective import Shortcut, VisionObjective
from lit_pretrain.required import required

if TYPE_CHECKING:
    from PIL.Image import Image

    from lit_pretrain.backbone.vision_encoder import VisionEncoder

VARIANCE_EPSILON = 1e-6
HIDDEN_SHADE = 0.5
# In the check for shortcuts: hidden patches of a picture, and the width of their positions.
CHECKED_PATCHES, POSITION_WIDTH = 16, 32


class Decoder(nn.Module):
    """From the kept patches' features to the hidden patches' pixels: a narrow Transformer with positions of its own.

    Args:
        config: Of the Transformer.
        encoder_width: Features of a token that comes in.
        grid_size: Patches along the picture's side.
        pixels: Values of a patch, channels counted.
    """

    position: Tensor

    def __init__(self, config: VisionTransformerConfig, encoder_width: int, grid_size: int, pixels: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(encoder_width, config.width)
        self.mask_token = nn.Parameter(torch.empty(config.width))
        self.transformer = Transformer(config)
        self.prediction = nn.Linear(config.width, pixels)
        self.register_buffer("position", sincos_positions((grid_size, grid_size), config.width)[0], persistent=False)
        initialise(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Tensor, kept: Tensor, hidden: Tensor) -> Tensor:
        """Predict the hidden patches.

        Attention does not know of order but by positions, so the hidden patches simply follow the others.

        Args:
            features: (B, prefix + K, D), the encoder's.
            kept: (B, K) which patches they are.
            hidden: (B, N - K) the others.

        Returns:
            (B, N - K, pixels).
        """
        tokens = self.embedding(features)
        prefix, patches = tokens.split([tokens.shape[1] - kept.shape[1], kept.shape[1]], dim=1)
        patches = patches + self.position[kept]
        masked = (self.mask_token + self.position[hidden]).to(tokens.dtype)
        tokens = self.transformer(torch.cat([prefix, patches, masked], dim=1))
        return self.prediction(tokens[:, -hidden.shape[1] :])

    def forward_flops(self, tokens: int, hidden: int) -> float:
        """Operations for one picture of so many tokens, prefix counted."""
        config, embedding, prediction = self.transformer.config, self.embedding, self.prediction
        ends = (tokens - hidden) * embedding.in_features + hidden * prediction.out_features
        return tokens * config.forward_flops_per_token(tokens) + 2.0 * ends * config.width


class MaskedImageModeling(VisionObjective):
    """Reconstruct the pixels of hidden patches from those that are left.

    Args:
        mask_ratio: Share of the patches that is hidden, drawn for each picture by itself; two are the first and the
            last one of the training.
        decoder_depth: Blocks of the decoder (8 in the paper, where 1 fine-tunes almost as well).
        decoder_width: Its width (512 in the paper), a multiple of 4.
        decoder_heads: Its attention heads; null means one for every 64 features, at least one.
        normalize_targets: Whether each patch's pixels are brought to mean 0 and variance 1, which the paper found
            better than pixels as they are.
        weight: Factor of this loss in the sum.
    """

    name = "masked_image_modeling"
    training_settings = ("mask_ratio", "weight")
    uses_pooling = False

    def __init__(
        self,
        mask_ratio: Rate = 0.75,
        decoder_depth: int = 2,
        decoder_width: int = 128,
        decoder_heads: int | None = None,
        normalize_targets: bool = True,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_rate("MaskedImageModeling.mask_ratio", mask_ratio)
        if decoder_depth < 1:
            raise UserError(f"MaskedImageModeling.decoder_depth is {decoder_depth}: give at least 1.")
        heads = max(1, decoder_width // 64) if decoder_heads is None else decoder_heads
        if decoder_width < 4 or decoder_width % 4 or heads < 1 or decoder_width % heads:
            raise UserError(
                f"MaskedImageModeling.decoder_width is {decoder_width} with {heads} heads: give a multiple of 4, and "
                "decoder_heads that divide it."
            )
        self.mask_ratio = mask_ratio
        self.varies = isinstance(mask_ratio, list)
        self.decoder_depth = decoder_depth
        self.decoder_width = decoder_width
        self.decoder_heads = decoder_heads
        self.normalize_targets = normalize_targets
        self.weight = weight
        self.decoder: Decoder | None = None

    def build(self, encoder: "VisionEncoder", vocabulary: Vocabulary | None = None) -> None:
        """Make the decoder."""
        if self.decoder is None:
            config = VisionTransformerConfig(
                depth=self.decoder_depth,
                width=self.decoder_width,
                heads=self.decoder_heads,
                norm_epsilon=encoder.config.norm_epsilon,
            )
            pixels = encoder.channels * encoder.patch_size**2
            self.decoder = Decoder(config, encoder.width, encoder.grid_size, pixels)

    def check_data(self, encoder: "VisionEncoder", facts: DataFacts) -> None:
        """At least one patch must be hidden, and one kept."""
        if not all(0 < kept_of(encoder.patches, rate_at(self.mask_ratio, end)) < encoder.patches for end in (0.0, 1.0)):
            raise UserError(
                f"MaskedImageModeling.mask_ratio {self.mask_ratio} of the {encoder.patches} patches of a picture "
                "hides none or all of them: change it, or take a smaller encoder.patch_size."
            )

    # -- what is seen and asked

    def make_pass(self, batch: Batch, encoder: "VisionEncoder", generator: torch.Generator | None) -> EncoderPass:
        """Draw which patches are kept and hidden."""
        images = encoder.normalize(batch["images"])
        shape = len(images), encoder.patches
        scores = torch.rand(shape, generator=generator, device=images.device, dtype=torch.float32)
        number = kept_of(encoder.patches, self.rate_now(self.mask_ratio))
        kept, hidden = scores.argsort(dim=1).tensor_split([number], dim=1)
        return EncoderPass({"images": images, "keep": kept}, {"images": images, "kept": kept, "hidden": hidden})

    def patches_asked(self, targets: dict[str, Tensor], patch_size: int) -> Tensor:
        """The hidden patches as the encoder would see them, (B, N - K, pixels)."""
        patches = cut_patches(targets["images"], patch_size)
        return patches.gather(1, targets["hidden"][..., None].expand(-1, -1, patches.shape[-1]))

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: "VisionEncoder"
    ) -> ObjectiveOutput:
        """Squared error, mean over the pixels of the hidden patches.

        `explained_variance` is the share of their variance that is told: 0 for always telling their mean, 1 at best.
        """
        predicted = at_least_float32(required(self.decoder)(features, targets["kept"], targets["hidden"]))
        wanted_patches = at_least_float32(self.patches_asked(targets, encoder.patch_size))
        if self.normalize_targets:
            mean, deviation = patch_statistics(wanted_patches)
            wanted_patches = (wanted_patches - mean) / deviation
        errors = (predicted - wanted_patches).square().mean(dim=-1)
        total, count = errors.sum(), torch.full((), errors.numel(), device=errors.device)
        variance = (wanted_patches - wanted_patches.mean()).square().mean(dim=-1).sum()
        statistics = {
            "loss": (total.detach(), count),
            "explained_variance": (variance - total.detach(), variance),
        }
        return ObjectiveOutput(global_mean(total, count, self.training), statistics)

    # -- costs and pictures

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """Of telling always the mean."""
        told, loss = (frequencies.statistics.get(name) for name in ("explained_variance", "loss"))
        if self.normalize_targets:
            loss = 1.0
        elif told is not None and loss is not None and told < 1.0:
            # The variance of what was asked in the latest evaluation.
            loss /= 1.0 - told
        else:
            loss = None
        return {"explained_variance": 0.0} | ({} if loss is None else {"loss": loss})

    def pass_shape(self, encoder: "VisionEncoder", samples: int, sequence_length: int) -> tuple[int, int]:
        """Every picture once, with the kept patches only, on average over the training."""
        return samples, encoder.prefix_tokens + kept_of(encoder.patches, rate_at(self.mask_ratio, 0.5))

    def forward_flops(self, encoder: "VisionEncoder", samples: int, sequence_length: int) -> float:
        """Operations of the decoder, which sees all patches."""
        hidden = encoder.patches - kept_of(encoder.patches, rate_at(self.mask_ratio, 0.5))
        return samples * required(self.decoder).forward_flops(encoder.prefix_tokens + encoder.patches, hidden)

    @torch.no_grad()
    def examples(
        self,
        encoder: "VisionEncoder",
        batch: Batch,
        vocabulary: Vocabulary | None,
        generator: torch.Generator,
        count: int = 8,
    ) -> "Image":
        """Each picture as it was shown, as it was told (the kept patches as they are), and as it is.

        Told patches have the mean and deviation of the true ones if targets are normalised, as the authors show them.
        """
        encoder_pass = self.make_pass({"images": batch["images"][:count]}, encoder, generator)
        targets, images = encoder_pass.targets, batch["images"][:count]
        predicted = required(self.decoder)(
            encoder.forward_features(**encoder_pass.inputs), targets["kept"], targets["hidden"]
        ).float()
        if self.normalize_targets:
            mean, deviation = patch_statistics(self.patches_asked(targets, encoder.patch_size))
            predicted = predicted * deviation + mean
        places = targets["hidden"][..., None].expand_as(predicted)
        patches = cut_patches(targets["images"], encoder.patch_size)
        predicted = join_patches(patches.scatter(1, places, predicted.to(patches.dtype)), encoder.patch_size)
        predicted = predicted * encoder.std + encoder.mean
        visible = cut_patches(images, encoder.patch_size).scatter(1, places, HIDDEN_SHADE)
        pictures = [*zip(join_patches(visible, encoder.patch_size), predicted, images, strict=True)]
        pairs = range(0, len(pictures), 2)
        return grid(
            [[picture for row in pictures[start : start + 2] for picture in row] for start in pairs],
            headings=["shown", "predicted", "true"] * min(2, len(pictures)),
        )

    @torch.no_grad()
    def shortcuts(
        self, encoder: "VisionEncoder", batch: Batch, generator: torch.Generator | None
    ) -> dict[str, Shortcut]:
        """`positions_only`: the place of a hidden patch should not tell which of its quarters is the brightest."""
        if encoder.patch_size < 2:
            return {}
        targets = self.make_pass(batch, encoder, generator).targets
        hidden = targets["hidden"][:, :CHECKED_PATCHES]
        patches = self.patches_asked(targets | {"hidden": hidden}, encoder.patch_size).flatten(0, 1)
        patches = patches.unflatten(1, (encoder.channels, encoder.patch_size, encoder.patch_size)).mean(1, keepdim=True)
        quarters = nn.functional.adaptive_avg_pool2d(patches, 2).flatten(1)
        # Of an even patch no quarter is the brightest: the answer is drawn.
        noise = torch.rand(quarters.shape, generator=generator, device=quarters.device, dtype=torch.float32)
        position = sincos_positions((encoder.grid_size, encoder.grid_size), POSITION_WIDTH, hidden.device)[0]
        return {
            "positions_only": Shortcut(position[hidden].flatten(0, 1), (quarters + 1e-4 * noise).argmax(dim=1), 4),
        }


def kept_of(patches: int, mask_ratio: float) -> int:
    """Number of patches that the encoder sees."""
    return round(patches * (1.0 - mask_ratio))


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of patches (..., pixels), each (..., 1), as the authors compute them."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + VARIANCE_EPSILON).sqrt()


def join_patches(patches: Tensor, patch_size: int) -> Tensor:
    """Square pictures (B, C, S, S) of their patches (B, N, C * patch_size ** 2): the inverse of `cut_patches`."""
    side = round(patches.shape[1] ** 0.5)
    grid_of_patches = patches.unflatten(1, (side, side)).unflatten(3, (-1, patch_size, patch_size))
    return grid_of_patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
