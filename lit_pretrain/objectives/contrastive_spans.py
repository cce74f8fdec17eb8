"""Contrastive spans: which two spans of text come from one document? DeCLUTR (Giorgi et al. 2021, arXiv:2006.03659).

Every sequence of a batch is cut into halves, which are encoded apart; a half is asked which of all halves of the batch
is its other one, both ways (InfoNCE, arXiv:1807.03748). What tells documents apart, their topic, their tone, has to be
in the mean of a span's features, where masked language modelling mostly asks for what the next words say. It is a good
companion of that (as there), and a good start for classifying whole documents. The inverse cloze task (Lee et al. 2019,
arXiv:1906.00300) is its relative of one sentence and the rest.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.backbone.text_encoder import TextEncoder
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_in_batch
from lit_pretrain.objectives.gathering import first_row, gather_rows, processes
from lit_pretrain.objectives.objective import Batch, EncoderPass, Objective, ObjectiveOutput, Vocabulary
from lit_pretrain.objectives.span_halves import (
    check_halves,
    check_hiding,
    halves_pass,
    means_of_halves,
    name_of_pass,
    shape_of_halves,
)


class ContrastiveSpans(Objective):
    """Find the other half of a piece of text in a batch.

    Args:
        temperature: By which cosines are divided (DeCLUTR: 0.05).
        weight: Factor of this loss in the sum.
        token_dropout: Share of a half's tokens that training leaves out, others at every step: what is learned from
            does not hang on a few rare words, and costs less. Objectives on halves with the same share read one pass.
    """

    name = "contrastive_spans"
    views_apart = True
    compares_batch = True
    uses_pooling = False
    reads_mean_by = "mask"

    def __init__(self, temperature: float = 0.05, weight: float = 1.0, token_dropout: float = 0.0) -> None:
        super().__init__()
        if not 0.0 < temperature <= 1.0:
            raise UserError(f"ContrastiveSpans.temperature is {temperature}: give a number in (0, 1].")
        self.temperature = temperature
        self.weight = weight
        self.token_dropout = token_dropout
        self.pass_name = name_of_pass("ContrastiveSpans", token_dropout)

    def make_pass(self, batch: Batch, encoder: TextEncoder, generator: torch.Generator) -> EncoderPass:
        """All first halves, then all second halves.

        Raises:
            UserError: If there is nothing to choose among.
        """
        if self.training and len(batch["input_ids"]) * processes() < 2:
            raise UserError(
                "ContrastiveSpans chooses among the sequences of a batch, and this batch has one: raise "
                "data.batch_size (32 and more serve it well)."
            )
        return halves_pass(batch, generator, self.token_dropout if self.training else 0.0)

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: TextEncoder
    ) -> ObjectiveOutput:
        """Cross-entropy of the choice among the batch, the mean of both ways."""
        from_first, from_second, own = self.logits(features, targets)
        losses = [functional.cross_entropy(logits, own, reduction="sum") for logits in (from_first, from_second)]
        total, count = (losses[0] + losses[1]) / 2, torch.full((), len(own), device=own.device)
        first, second = ((logits.argmax(dim=1) == own).sum() for logits in (from_first, from_second))
        right = (first + second).float() / 2
        statistics = {"loss": (total.detach(), count), "accuracy": (right, count)}
        return ObjectiveOutput(total / count, statistics)

    def logits(self, features: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of every half against all other ones: cosines over the temperature.

        In evaluation processes may have different numbers of batches, so each chooses among its own.

        Args:
            features: (2 B, N, D) of the first halves, then of the second ones, or their means (2 B, D).
            targets: Of the pass; their `mask` is 1 at what is no padding.

        Returns:
            (B, all B) of second halves for each first one, (B, all B) of first for each second, and (B,) where the
            right ones stand.
        """
        with torch.autocast(features.device.type, enabled=False):
            first, second = functional.normalize(means_of_halves(at_least_float32(features), targets), dim=-1).chunk(2)
            start, everyone = (first_row(len(first)), gather_rows) if self.training else (0, lambda rows: rows)
            pairs = ((first, second), (second, first))
            forth, back = (anchor @ everyone(candidate).T / self.temperature for anchor, candidate in pairs)
        return forth, back, torch.arange(start, start + len(first), device=first.device)

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """A half is any of its batch's."""
        return chance_in_batch(frequencies)

    @torch.no_grad()
    def examples(
        self, encoder: TextEncoder, batch: Batch, vocabulary: Vocabulary, generator: torch.Generator, count: int = 8
    ) -> list[dict[str, str]]:
        """A first half, the half that is taken for its second, and the truth."""
        encoder_pass = self.make_pass(batch, encoder, generator)
        mask = encoder_pass.targets["mask"]
        scores, _, _ = self.logits(encoder.forward_features(**encoder_pass.inputs), encoder_pass.targets)
        first, second = encoder_pass.inputs["input_ids"].chunk(2)
        first_mask, second_mask = mask.to(torch.bool).chunk(2)
        chosen, rows = scores.argmax(dim=1).tolist(), []
        for row in range(min(count, len(first))):
            choice = chosen[row]
            rows.append(
                {
                    "first": vocabulary.decode(first[row][first_mask[row]].tolist()),
                    "taken for its second": vocabulary.decode(second[choice][second_mask[choice]].tolist()),
                    "truth": "right" if choice == row else vocabulary.decode(second[row][second_mask[row]].tolist()),
                }
            )
        return rows

    def pass_shape(self, encoder: TextEncoder, samples: int, sequence_length: int) -> tuple[int, int]:
        """The halves."""
        return shape_of_halves(samples, sequence_length, self.token_dropout)

    def forward_flops(self, encoder: TextEncoder, samples: int, sequence_length: int) -> float:
        """Operations of the scores, both ways."""
        return 4.0 * samples * samples * encoder.width

    def check_encoder(self, encoder: TextEncoder) -> None:
        """Tokens can be hidden of attention that reads a mask alone."""
        check_hiding(self, encoder)

    def check_data(self, encoder: TextEncoder, facts: DataFacts) -> None:
        """The sequences must be of one text each, and long enough to be cut."""
        check_halves("ContrastiveSpans", facts)
