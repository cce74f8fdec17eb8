"""Replaced token detection: ELECTRA (Clark et al. 2020, arXiv:2003.10555).

A narrower generator is trained by masked language modelling; its samples replace the hidden tokens, and the encoder
(the discriminator) tells for every real token, [CLS] and [SEP] too, whether it was replaced. A sample that equals the
original counts as original. Both share the embeddings. Loss = generator's cross-entropy + 50 x mean binary
cross-entropy. The published failure is a generator that is too good too early; keep it narrow.
"""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.backbone.packed_rows import places_within
from lit_pretrain.backbone.text_encoder import TextEncoder, initialise, rotations_at
from lit_pretrain.backbone.transformer import Transformer
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_of_classes, chance_of_pieces
from lit_pretrain.objectives.heads import LanguageModelingHead
from lit_pretrain.objectives.masked_language_modeling import MaskedLanguageModeling
from lit_pretrain.objectives.masking import MaskedPositions, corrupt
from lit_pretrain.objectives.objective import (
    Batch,
    EncoderPass,
    ObjectiveOutput,
    Vocabulary,
    clean_inputs,
    global_mean,
)
from lit_pretrain.objectives.rates import Rate
from lit_pretrain.required import required


class ReplacedTokenDetection(MaskedLanguageModeling):
    """Tell which tokens a small generator has replaced.

    Args:
        probability: Share of positions that the generator fills in; two are the first and the last one of the training.
        whole_word: Hide all pieces of a word together.
        generator_width_share: The generator's width over the encoder's (the paper: 1/4 to 1/3).
        discriminator_weight: Factor of the discriminator's loss beside the generator's (the paper: 50).
        max_predictions: Cap on the hidden positions of a sequence; null for none.
        weight: Factor of this loss in the sum.
    """

    name = "replaced_token_detection"
    ties_embeddings = True
    training_settings = (
        "probability",
        "whole_word",
        "discriminator_weight",
        "max_predictions",
        "weight",
    )
    perplexities = ("generator_loss",)
    shares_pass = True

    @property
    def loss_factors(self) -> dict[str, float]:
        """The generator's and the discriminator's."""
        return {"generator_loss": 1.0, "discriminator_loss": self.discriminator_weight}

    def __init__(
        self,
        probability: Rate = 0.15,
        whole_word: bool = False,
        generator_width_share: float = 0.25,
        discriminator_weight: float = 50.0,
        max_predictions: int | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(probability, whole_word, 1.0, 0.0, max_predictions, weight)
        if not 0.0 < generator_width_share <= 1.0:
            raise UserError(
                f"ReplacedTokenDetection.generator_width_share is {generator_width_share}: give a share in (0, 1]."
            )
        check_number("ReplacedTokenDetection.discriminator_weight", discriminator_weight, above=0)
        self.generator_width_share = generator_width_share
        self.discriminator_weight = discriminator_weight
        self.generator: Transformer | None = None

    def build(self, encoder: TextEncoder, vocabulary: Vocabulary | None = None) -> None:
        """Make the generator and both heads."""
        if self.generator is None:
            heads = max(1, round(encoder.width * self.generator_width_share) // 64)
            # A width that its heads divide into even parts, which rotary positions need.
            width = max(2 * heads, round(encoder.width * self.generator_width_share / (2 * heads)) * 2 * heads)
            config = replace(encoder.config, width=width, heads=heads, feed_forward_width=4 * width)
            self.projection = nn.Linear(encoder.width, width)
            self.generator = Transformer(config)
            self.head = LanguageModelingHead.for_encoder(encoder, width)
            self.discriminator_dense = nn.Linear(encoder.width, encoder.width)
            self.discriminator_output = nn.Linear(encoder.width, 1)
            initialise(self)
        super().build(encoder, vocabulary)

    def generate(self, inputs: dict[str, Any], encoder: TextEncoder) -> Tensor:
        """The generator's features (B, N, generator width) of a masked input."""
        documents = inputs.get("documents")
        places = None if documents is None else places_within(documents)
        tokens = self.projection(encoder.embeddings(inputs["input_ids"], inputs.get("token_type_ids"), places))
        config = required(self.generator).config
        head_width = config.width // config.resolved_heads
        rotations = encoder.make_rotations(tokens.shape[1], tokens.device, head_width)
        if places is not None:
            rotations = rotations_at(rotations, places)
        mask = inputs.get("attention_mask") if inputs.get("padded", True) else None
        return required(self.generator)(tokens, mask, False, *rotations, documents=documents)

    def hide(self, batch: Batch, generator: torch.Generator) -> tuple[MaskedPositions, Tensor, Tensor]:
        """Draw the hidden positions, the masked input (B, N), and the numbers (B, K) in [0, 1) that samples are of."""
        positions = self.choose(batch, generator)
        masked = corrupt(batch["input_ids"], positions, self.mask_id, self.ordinary, (1.0, 0.0), generator)
        shape = positions.indices.shape
        uniform = torch.rand(shape, generator=generator, device=masked.device, dtype=torch.float32)
        return positions, masked, uniform

    def make_pass(self, batch: Batch, encoder: TextEncoder, generator: torch.Generator) -> EncoderPass:
        """Hide positions, let the generator fill them in, and hand the result to the encoder."""
        positions, masked, uniform = self.hide(batch, generator)
        features = self.generate(clean_inputs(batch) | {"input_ids": masked}, encoder)
        originals = positions.gather(batch["input_ids"])
        result = required(self.head).cross_entropy(
            positions.gather(features).flatten(0, 1),
            required(encoder.embeddings.token).weight,
            originals.flatten(),
            positions.valid.flatten(),
            uniform.flatten(),
        )
        filled = torch.where(positions.valid, required(result.samples).view_as(originals), originals)
        replaced_ids = batch["input_ids"].scatter(1, positions.indices, filled)
        targets = {
            "replaced": replaced_ids != batch["input_ids"],
            "generator_total": result.total,
            "generator_correct": result.correct,
            "generator_count": positions.valid.sum(),
            "indices": positions.indices,
            "valid": positions.valid,
            "replaced_ids": replaced_ids,
        }
        return EncoderPass(clean_inputs(batch) | {"input_ids": replaced_ids}, targets)

    def discriminate(self, features: Tensor) -> Tensor:
        """Logits (B, N) of having been replaced."""
        return self.discriminator_output(nn.functional.gelu(self.discriminator_dense(features)))[..., 0]

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: TextEncoder
    ) -> ObjectiveOutput:
        """Generator's cross-entropy plus the weighted binary cross-entropy over all real tokens."""
        real, replaced = batch["attention_mask"].to(torch.bool), targets["replaced"]
        logits = at_least_float32(self.discriminate(features))
        losses = nn.functional.binary_cross_entropy_with_logits(logits, replaced.to(logits.dtype), reduction="none")
        total, count = (losses * real).sum(), real.sum()
        generator_count = targets["generator_count"]
        parts = {
            "generator_loss": global_mean(targets["generator_total"], generator_count, self.training),
            "discriminator_loss": self.discriminator_weight * global_mean(total, count, self.training),
        }
        right = (logits > 0) == replaced
        was_replaced, was_original = real & replaced, real & ~replaced
        statistics = {
            "generator_loss": (targets["generator_total"].detach(), generator_count),
            "generator_accuracy": (targets["generator_correct"], generator_count),
            "discriminator_loss": (total.detach(), count),
            "accuracy": ((right & real).sum(), count),
            "replaced_found": ((right & was_replaced).sum(), was_replaced.sum()),
            "originals_kept": ((right & was_original).sum(), was_original.sum()),
            "replaced_share": (was_replaced.sum(), count),
        }
        return ObjectiveOutput(cast(Tensor, sum(parts.values())), statistics, parts)

    def terms(self, targets: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The generator's hidden positions, and the discriminator's real tokens."""
        return {"generator_loss": targets["valid"].sum(), "discriminator_loss": batch["attention_mask"].sum()}

    def count_terms(self, batch: Batch, encoder: TextEncoder, generator: torch.Generator) -> dict[str, Tensor]:
        """As the base's, without asking the generator."""
        return self.terms({"valid": self.hide(batch, generator)[0].valid}, batch)

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """Of the generator, by how often each word piece occurs; of the discriminator, by the share of the tokens that
        were replaced in the latest evaluation, since it falls with what the generator has learned.
        """
        figures = {f"generator_{name}": value for name, value in chance_of_pieces(frequencies).items()}
        share = frequencies.statistics.get("replaced_share")
        if share is None or not 0.0 <= share <= 1.0:
            return figures
        guess = chance_of_classes([share, 1.0 - share])
        found, kept = (1.0, 0.0) if share > 0.5 else (0.0, 1.0)
        return figures | {
            "discriminator_loss": guess["loss"],
            "accuracy": guess["accuracy"],
            "replaced_found": found,
            "originals_kept": kept,
        }

    @torch.no_grad()
    def examples(
        self, encoder: TextEncoder, batch: Batch, vocabulary: Vocabulary, generator: torch.Generator, count: int = 8
    ) -> list[dict[str, str]]:
        """Texts as the discriminator saw them, which tokens it calls replaced, and which were."""
        encoder_pass = self.make_pass(batch, encoder, generator)
        suspected = self.discriminate(encoder.forward_features(**encoder_pass.inputs)[:count]) > 0
        real = batch["attention_mask"][:count].to(torch.bool)
        positions = MaskedPositions(encoder_pass.targets["indices"][:count], encoder_pass.targets["valid"][:count])
        rows = []
        for row in range(len(suspected)):
            replaced = encoder_pass.targets["replaced_ids"][row]

            def words(chosen: Tensor, ids: Tensor = replaced) -> str:
                return " ".join(vocabulary.id_to_token(token) for token in ids[chosen].tolist())

            hidden = positions.indices[row][positions.valid[row]].sort().values
            rows.append(
                {
                    "seen": vocabulary.decode(replaced[real[row]].tolist(), keep_special=True),
                    "called replaced": words(suspected[row] & real[row]),
                    "truth": words(encoder_pass.targets["replaced"][row]),
                    "originals of the sampled": words(hidden, batch["input_ids"][row]),
                }
            )
        return rows

    def forward_flops(self, encoder: TextEncoder, samples: int, sequence_length: int) -> float:
        """Operations of the generator, its head, and the discriminator's head."""
        tokens = samples * sequence_length
        generator = required(self.generator).config.forward_flops_per_token(sequence_length)
        dense = 2.0 * encoder.width * (encoder.width + required(self.generator).config.width)
        return tokens * (generator + dense) + super().forward_flops(encoder, samples, sequence_length)

    def huggingface_names(self) -> dict[str, str]:
        """None: `BertForPreTraining` has no such head."""
        return {}
