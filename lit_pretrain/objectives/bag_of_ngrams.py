"""Bag of n-grams: which runs of words does the other half of a text hold? Paragraph vectors that predict n-grams (Li et
al. 2016, arXiv:1512.08183) from an encoder's features in the place of a vector learned for each text.

Words say what a text is about; "waste of", "not even" and "must see" say more of what it thinks. There are too many
n-grams for a softmax over all of them, so that some of each half stand for it, and whose they are is asked among those
of all halves of the batch (sampled softmax: Jean et al. 2015, arXiv:1412.2007). They are drawn as often as they are
used, so what is learned is how much more likely a half makes them. Reads the same pass as `BagOfWords`.
"""

import math

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.ngram_embeddings import NONE, ngram_pieces
from lit_pretrain.backbone.pooling import mean_pool
from lit_pretrain.backbone.row_look_up import look_up
from lit_pretrain.backbone.text_encoder import TextEncoder
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies
from lit_pretrain.objectives.gathering import first_row, gather_rows
from lit_pretrain.objectives.linear_cross_entropy import linear_cross_entropy
from lit_pretrain.objectives.objective import (
    Batch,
    EncoderPass,
    Objective,
    ObjectiveOutput,
    Vocabulary,
    global_mean,
)
from lit_pretrain.objectives.span_halves import (
    check_halves,
    check_hiding,
    halves_pass,
    means_of_halves,
    name_of_pass,
    shape_of_halves,
)
from lit_pretrain.required import required

# The score of a place without n-gram, whose probability is 0 then; every precision has it.
ABSENT = -1e4


class BagOfNgrams(Objective):
    """Tell the n-grams of the other half from those of the batch's other texts, by the mean of a half's features.

    The n-grams are those that the encoder has embeddings for; here they have others of their own.

    Args:
        weight: Factor of this loss in the sum.
        draws: N-grams that are drawn from each half.
        token_dropout: Share of a half's tokens that training leaves out, others at every step: what is learned from
            does not hang on a few rare words, and costs less. Objectives on halves with the same share read one pass.
    """

    name = "bag_of_ngrams"
    views_apart = True
    training_settings = ("draws", "token_dropout", "weight")
    uneven = True
    compares_batch = True
    uses_pooling = False
    reads_mean_by = "mask"

    def __init__(self, weight: float = 1.0, draws: int = 16, token_dropout: float = 0.0) -> None:
        super().__init__()
        if draws < 1:
            raise UserError(f"BagOfNgrams.draws is {draws}: give at least 1.")
        self.weight = weight
        self.draws = draws
        self.token_dropout = token_dropout
        self.pass_name = name_of_pass("BagOfNgrams", token_dropout)
        self.decoder: nn.Embedding | None = None

    def build(self, encoder: TextEncoder, vocabulary: Vocabulary | None = None) -> None:
        """Make the decoder, which starts by telling nothing."""
        if self.decoder is None:
            self.decoder = nn.Embedding(encoder.ngram_rows + 1, encoder.width)
            nn.init.zeros_(self.decoder.weight)

    def make_pass(self, batch: Batch, encoder: TextEncoder, generator: torch.Generator) -> EncoderPass:
        """All first halves, then all second halves; target `ngrams` (2 B, draws), 0 where a half has no more."""
        encoder_pass = halves_pass(batch, generator, self.token_dropout if self.training else 0.0)
        rows = torch.cat(required(encoder.embeddings.ngrams).rows_of(encoder_pass.targets["ids"]), dim=1)
        chance = torch.rand(rows.shape, generator=generator, device=rows.device, dtype=torch.float32)
        drawn = (chance + (rows > 0)).topk(min(self.draws, rows.shape[1]), dim=1).indices
        return EncoderPass(encoder_pass.inputs, encoder_pass.targets | {"ngrams": rows.gather(1, drawn)})

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: TextEncoder
    ) -> ObjectiveOutput:
        """Cross-entropy of the other halves' n-grams among all that were drawn, the mean over them; `candidates` is how
        many these are.

        In training these are all processes'; in evaluation each has batches of its own.
        """
        paired = targets["ngrams"].roll(len(targets["ngrams"]) // 2, dims=0)
        everyone, first = (gather_rows(paired), first_row(paired.numel())) if self.training else (paired, 0)
        # Places that a half leaves empty stay as columns that no softmax sees: to drop them would wait for the device.
        has_row = paired > 0
        rows = look_up(everyone.flatten(), required(self.decoder).weight)
        counts = has_row.sum(dim=1)
        result = linear_cross_entropy(
            means_of_halves(features, targets).to(rows.dtype),
            rows,
            # Finite, so that texts without any known n-gram have no NaN.
            (everyone == 0).flatten() * torch.full((), ABSENT, dtype=rows.dtype, device=rows.device),
            torch.arange(first, first + paired.numel(), device=paired.device).view_as(paired),
            counts,
            target_shares=has_row / counts.clamp(min=1)[:, None],
        )
        count = counts.sum()
        candidates = (everyone > 0).sum() * count
        return ObjectiveOutput(
            global_mean(result.total, count, self.training),
            {"loss": (result.total.detach(), count), "candidates": (candidates, count)},
        )

    def sparse_tables(self, whole_pieces: bool) -> set[str]:
        """Tables of which a step reads some rows: those of the drawn n-grams."""
        return set() if self.decoder is None else {"decoder.weight"}

    def terms(self, targets: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The drawn n-grams."""
        return {"loss": (targets["ngrams"] > 0).sum()}

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """Any of the n-grams that were drawn, as often as they are used, from all halves of the batch."""
        candidates = frequencies.statistics.get("candidates", 0.0)
        return {"loss": math.log(candidates)} if candidates >= 1.0 else {}

    @torch.no_grad()
    def examples(
        self, encoder: TextEncoder, batch: Batch, vocabulary: Vocabulary, generator: torch.Generator, count: int = 8
    ) -> list[dict[str, str]]:
        """A half, the n-grams that it makes likelier than any others, and which of them the other half has."""
        encoder_pass = self.make_pass(batch, encoder, generator)
        pooled = mean_pool(encoder.forward_features(**encoder_pass.inputs), encoder_pass.targets["mask"])
        keys = required(encoder.embeddings.ngrams).keys
        # What no n-gram has lies at the end. Of a view, and in the table's precision: a copy of the table would be the
        # peak of a training's memory.
        table = required(self.decoder).weight[1 : 1 + int((keys != NONE).sum())]
        with torch.autocast(table.device.type, enabled=False):
            scores = pooled[:count].to(table.dtype) @ table.T
        first, second = encoder_pass.targets["ids"].chunk(2)
        words = encoder_pass.targets["words"].chunk(2)[0].to(torch.bool)
        rows_of_second = torch.cat(required(encoder.embeddings.ngrams).rows_of(second), dim=1).tolist()
        rows = []
        for row, scored in enumerate(scores[: len(first)]):
            best = (scored.topk(min(12, len(scored))).indices + 1).tolist()
            named = {candidate: vocabulary.decode(ngram_pieces(int(keys[candidate - 1]))) for candidate in best}
            rows.append(
                {
                    "half": vocabulary.decode(first[row][words[row]].tolist()),
                    "expected": ", ".join(named.values()),
                    "found": ", ".join(name for key, name in named.items() if key in rows_of_second[row]),
                }
            )
        return rows

    def pass_shape(self, encoder: TextEncoder, samples: int, sequence_length: int) -> tuple[int, int]:
        """The halves."""
        return shape_of_halves(samples, sequence_length, self.token_dropout)

    def forward_flops(self, encoder: TextEncoder, samples: int, sequence_length: int) -> float:
        """Operations of the scores."""
        return 2.0 * (2 * samples) * (2 * samples * self.draws) * encoder.width

    def check_encoder(self, encoder: TextEncoder) -> None:
        """There are n-grams; tokens can be hidden of attention that reads a mask alone."""
        check_hiding(self, encoder)
        if encoder.embeddings.ngrams is None:
            raise UserError(
                "BagOfNgrams asks for n-grams that the encoder has embeddings for: set encoder.ngrams to 2, or "
                "leave it out where the encoder is a public one."
            )

    def check_data(self, encoder: TextEncoder, facts: DataFacts) -> None:
        """The sequences must be of one text each, and long enough to be cut."""
        check_halves("BagOfNgrams", facts)
