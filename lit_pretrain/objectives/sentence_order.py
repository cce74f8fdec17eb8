"""Sentence order prediction: which of two consecutive texts came first? ALBERT (Lan et al. 2020, arXiv:1909.11942).

The data makes pairs whose second text follows the first always (data.random_next: never). Half of them are swapped here
for every objective of the mix, so that masked language modelling hides tokens of what is swapped and both tasks read
one pass, as in ALBERT. A random second text is told by its topic; swapped texts have the same words, and their order
must be told by what they say.
"""

import torch
from torch import Tensor

from lit_pretrain.backbone.text_encoder import TextEncoder
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_of_classes
from lit_pretrain.objectives.classification import classification_output
from lit_pretrain.objectives.objective import Batch, ObjectiveOutput, Vocabulary, clean_inputs
from lit_pretrain.objectives.pair_classification import PairClassification


class SentenceOrder(PairClassification):
    """Tell whether two consecutive texts stand in their order or are swapped, from the first token's features.

    Args:
        weight: Factor of this loss in the sum.
    """

    name = "sentence_order"
    fields_ahead = ("token_type_ids",)

    def check_data(self, encoder: TextEncoder, facts: DataFacts) -> None:
        """The batches must be pairs, none of them random."""
        if facts.layout != "sentence_pairs" or "next_sentence_label" in facts.fields:
            raise UserError(
                "SentenceOrder needs pairs of which the second text follows the first: set data.layout to "
                "sentence_pairs and data.random_next to never, and leave out NextSentencePrediction."
            )

    def arrange(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Swap half of the pairs; `order_label` (B,) is 1 where they are."""
        ids = batch["input_ids"]
        swapped = torch.randint(0, 2, ids.shape[:1], generator=generator, device=ids.device)
        ids, segments = swap_texts(ids, batch["token_type_ids"], batch["attention_mask"], swapped)
        return batch | {"input_ids": ids, "token_type_ids": segments, "order_label": swapped}

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: TextEncoder
    ) -> ObjectiveOutput:
        """Mean cross-entropy over the pairs."""
        logits = self.logits(features, encoder)
        return classification_output(logits, batch["order_label"], ("in_order", "swapped"), self.training)

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """Half of the texts are swapped."""
        return chance_of_classes([0.5, 0.5], ("in_order", "swapped"))

    @torch.no_grad()
    def examples(
        self, encoder: TextEncoder, batch: Batch, vocabulary: Vocabulary, generator: torch.Generator, count: int = 8
    ) -> list[dict[str, str]]:
        """Pairs as they were shown, with the probability of being swapped, and the truth."""
        batch = self.arrange(batch, generator)
        features, labels = encoder.forward_features(**clean_inputs(batch)), batch["order_label"]
        return self.rows_of(features, batch, labels, ("in order", "swapped"), encoder, vocabulary, count)


def swap_texts(ids: Tensor, segments: Tensor, mask: Tensor, swapped: Tensor) -> tuple[Tensor, Tensor]:
    """Let the two texts of some pairs change their places: [CLS] B [SEP] A [SEP] and padding.

    Args:
        ids: (B, L) of [CLS] A [SEP] B [SEP] and padding.
        segments: (B, L), 1 at B and its [SEP].
        mask: (B, L), 1 at what is no padding.
        swapped: (B,), 1 where they do.

    Returns:
        Tokens and segments (B, L).
    """
    real, second = mask.to(torch.bool), (segments == 1) & mask.to(torch.bool)
    total, length = real.sum(dim=1, keepdim=True), second.sum(dim=1, keepdim=True)  # length: of B and its [SEP]
    places = torch.arange(ids.shape[1], device=ids.device)
    # B moves to the front by what A and its [SEP] have, which move back by what B and its [SEP] have.
    moved = torch.where(places <= length, places + total - length - 1, places - length)
    within = (swapped[:, None] == 1) & (places > 0) & (places < total)
    later = ((places > length) & real).to(segments.dtype)
    return ids.gather(1, torch.where(within, moved, places)), torch.where(swapped[:, None] == 1, later, segments)
