"""Next sentence prediction: does B follow A? (Devlin et al. 2019, arXiv:1810.04805).

The data makes the pairs (label 1 = B is random, as in the authors' code); this objective reads the first pass that
another one shares, the masked input in BERT, through a tanh pooler on [CLS] and a two-way linear layer.
"""

import torch
from torch import Tensor

from lit_pretrain.backbone.text_encoder import TextEncoder
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_of_classes
from lit_pretrain.objectives.classification import classification_output
from lit_pretrain.objectives.objective import (
    Batch,
    ObjectiveOutput,
    Vocabulary,
    clean_inputs,
    require_fields,
)
from lit_pretrain.objectives.pair_classification import PairClassification


class NextSentencePrediction(PairClassification):
    """Tell whether the second text of a pair follows the first or is random.

    Args:
        weight: Factor of this loss in the sum.
    """

    name = "next_sentence_prediction"

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: TextEncoder
    ) -> ObjectiveOutput:
        """Mean cross-entropy over the pairs."""
        return classification_output(self.logits(features, encoder), batch["next_sentence_label"], (), self.training)

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """By how many of the pairs are random."""
        return chance_of_classes([1 - frequencies.random_pairs, frequencies.random_pairs])

    @torch.no_grad()
    def examples(
        self, encoder: TextEncoder, batch: Batch, vocabulary: Vocabulary, generator: torch.Generator, count: int = 8
    ) -> list[dict[str, str]]:
        """Pairs with the probability of being random, and the truth."""
        features, labels = encoder.forward_features(**clean_inputs(batch)), batch["next_sentence_label"]
        return self.rows_of(features, batch, labels, ("follows", "random"), encoder, vocabulary, count)

    def check_data(self, encoder: TextEncoder, facts: DataFacts) -> None:
        """The batches must be sentence pairs, some of them random."""
        advice = "set data.layout to sentence_pairs, and data.random_next to balanced"
        require_fields(self, facts.fields, "next_sentence_label", advice)

    def huggingface_names(self) -> dict[str, str]:
        """The NSP head (and the pooler, if it is this objective's) as `BertForPreTraining` names it."""
        names = {f"classifier.{part}": f"cls.seq_relationship.{part}" for part in ("weight", "bias")}
        if self.pooler is not None:
            names |= {f"pooler.dense.{part}": f"bert.pooler.dense.{part}" for part in ("weight", "bias")}
        return names
