"""Bag of words: which words does the other half of a text hold? The distributed bag of words of paragraph vectors (Le &
Mikolov 2014, arXiv:1405.4053) from an encoder's features in the place of a vector learned for each text; bag-of-words
decoding of retrieval models (DupMAE: Liu et al. 2023, arXiv:2211.08769) across two halves.

Every sequence is cut into halves, as for contrastive spans, which this is a good companion of: the two read one pass.
Where telling texts apart lives on their rarest words, here each word counts as often as it is used, so that what runs
through a whole text, its topic and its tone, weighs most. It costs one prediction a half, not one a token.
"""

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.pooling import mean_pool
from lit_pretrain.backbone.text_encoder import TextEncoder, initialise
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_of_pieces
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


class BagOfWords(Objective):
    """Predict the word pieces of the other half, whatever their order, from the mean of a half's features.

    Args:
        weight: Factor of this loss in the sum.
        token_dropout: Share of a half's tokens that training leaves out, others at every step: what is learned from
            does not hang on a few rare words, and costs less. Objectives on halves with the same share read one pass.
    """

    name = "bag_of_words"
    views_apart = True
    training_settings = ("token_dropout", "weight")
    uneven = True
    perplexities = ("loss",)
    uses_pooling = False
    reads_mean_by = "mask"

    def __init__(self, weight: float = 1.0, token_dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = weight
        self.token_dropout = token_dropout
        self.pass_name = name_of_pass("BagOfWords", token_dropout)
        self.decoder: nn.Linear | None = None

    def build(self, encoder: TextEncoder, vocabulary: Vocabulary | None = None) -> None:
        """Make the decoder, which starts by giving every word the same probability."""
        if self.decoder is None:
            self.decoder = nn.Linear(encoder.width, required(encoder.vocabulary_size))
            initialise(self)

    def make_pass(self, batch: Batch, encoder: TextEncoder, generator: torch.Generator) -> EncoderPass:
        """All first halves, then all second halves."""
        return halves_pass(batch, generator, self.token_dropout if self.training else 0.0)

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: TextEncoder
    ) -> ObjectiveOutput:
        """Cross-entropy of the other halves' word pieces, the mean over all of them."""
        ids, mask = targets["ids"].roll(len(targets["ids"]) // 2, dims=0), targets["words"]
        mask = mask.roll(len(mask) // 2, dims=0).float()
        counts, decoder = mask.sum(dim=1), required(self.decoder)
        result = linear_cross_entropy(
            means_of_halves(features, targets).to(decoder.weight.dtype),
            decoder.weight,
            # As the weight of one more feature, constant and as large as a token's others together (a norm gives them
            # a length of sqrt(width)): AdamW finds how frequent words are in a few hundred steps, not thousands.
            decoder.bias * encoder.width**0.5,
            ids,
            counts,
            target_shares=mask / counts.clamp(min=1.0)[:, None],
        )
        statistics = {"loss": (result.total.detach(), counts.sum())}
        return ObjectiveOutput(global_mean(result.total, counts.sum(), self.training), statistics)

    def terms(self, targets: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The word pieces."""
        return {"loss": targets["words"].sum()}

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """By how often each word piece occurs."""
        return {name: value for name, value in chance_of_pieces(frequencies).items() if name == "loss"}

    @torch.no_grad()
    def examples(
        self, encoder: TextEncoder, batch: Batch, vocabulary: Vocabulary, generator: torch.Generator, count: int = 8
    ) -> list[dict[str, str]]:
        """A half, the words that its other half should have more than the mean text, and which of them it has."""
        encoder_pass = self.make_pass(batch, encoder, generator)
        pooled = mean_pool(encoder.forward_features(**encoder_pass.inputs), encoder_pass.targets["mask"])
        first, second = encoder_pass.targets["ids"].chunk(2)
        # Of what is shown alone: those of all halves for all words would be the peak of a training's memory.
        unlike_the_mean = pooled[: len(first)][:count] - pooled.mean(dim=0)
        scores = nn.functional.linear(unlike_the_mean, required(self.decoder).weight)
        first_words, second_words = encoder_pass.targets["words"].to(torch.bool).chunk(2)
        rows = []
        for row, best in enumerate(scores.topk(12, dim=1).indices.tolist()):
            words_of_second = set(second[row][second_words[row]].tolist())
            rows.append(
                {
                    "half": vocabulary.decode(first[row][first_words[row]].tolist()),
                    "expected": " ".join(vocabulary.id_to_token(token) for token in best),
                    "found": " ".join(vocabulary.id_to_token(token) for token in best if token in words_of_second),
                }
            )
        return rows

    def pass_shape(self, encoder: TextEncoder, samples: int, sequence_length: int) -> tuple[int, int]:
        """The halves."""
        return shape_of_halves(samples, sequence_length, self.token_dropout)

    def forward_flops(self, encoder: TextEncoder, samples: int, sequence_length: int) -> float:
        """Operations of the decoder."""
        return 4.0 * samples * encoder.width * required(encoder.vocabulary_size)

    def check_encoder(self, encoder: TextEncoder) -> None:
        """Tokens can be hidden of attention that reads a mask alone."""
        check_hiding(self, encoder)

    def check_data(self, encoder: TextEncoder, facts: DataFacts) -> None:
        """The sequences must be of one text each, and long enough to be cut."""
        check_halves("BagOfWords", facts)
