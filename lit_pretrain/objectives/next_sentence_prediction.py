"""Next sentence prediction: does B follow A? (Devlin et al. 2019, arXiv:1810.04805).

The data makes the pairs (label 1 = B is random, as in the authors' code); this objective reads the first pass that
another one shares, the masked input in BERT, through a tanh pooler on [CLS] and a two-way linear layer.
"""

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.backbone.pooling import BertPooler
from lit_pretrain.backbone.text_encoder import TextEncoder, initialise
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.objective import (
    Batch,
    Objective,
    ObjectiveOutput,
    Vocabulary,
    clean_inputs,
    global_mean,
    require_both_sides,
    require_fields,
)
from lit_pretrain.required import required


class NextSentencePrediction(Objective):
    """Tell whether the second text of a pair follows the first or is random.

    Args:
        weight: Factor of this loss in the sum.
    """

    name = "next_sentence_prediction"
    passes = 0

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.pooler: BertPooler | None = None
        self.classifier: nn.Linear | None = None

    def build(self, encoder: TextEncoder, vocabulary: Vocabulary | None = None) -> None:
        """Make the pooler, unless the encoder has BERT's own, and the classifier."""
        if self.classifier is None:
            if encoder.pooling != "pooler":
                self.pooler = BertPooler(encoder.width)
            self.uses_pooling = self.pooler is None
            self.classifier = nn.Linear(encoder.width, 2)
            initialise(self)

    def check_encoder(self, encoder: TextEncoder) -> None:
        """The first token must see the others."""
        require_both_sides(self, encoder, "reads the first token for all that follows it")

    def logits(self, features: Tensor, encoder: TextEncoder) -> Tensor:
        """Scores (B, 2): follows, random."""
        return required(self.classifier)(required(self.pooler or encoder.pooler)(features))

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: TextEncoder
    ) -> ObjectiveOutput:
        """Mean cross-entropy over the pairs."""
        logits, labels = at_least_float32(self.logits(features, encoder)), batch["next_sentence_label"]
        total = nn.functional.cross_entropy(logits, labels, reduction="sum")
        count = torch.full((), len(labels), device=labels.device)
        correct = (logits.argmax(dim=-1) == labels).sum()
        statistics = {"loss": (total.detach(), count), "accuracy": (correct, count)}
        return ObjectiveOutput(global_mean(total, count, self.training), statistics)

    @torch.no_grad()
    def examples(
        self, encoder: TextEncoder, batch: Batch, vocabulary: Vocabulary, generator: torch.Generator, count: int = 8
    ) -> list[dict[str, str]]:
        """Pairs with the probability of being random, and the truth."""
        probability = self.logits(encoder.forward_features(**clean_inputs(batch)), encoder).float().softmax(dim=-1)
        rows = []
        for row in range(min(count, len(probability))):
            real = batch["attention_mask"][row].to(torch.bool)
            ids, segments = batch["input_ids"][row][real], batch["token_type_ids"][row][real]
            rows.append(
                {
                    "first": vocabulary.decode(ids[segments == 0].tolist()),
                    "second": vocabulary.decode(ids[segments == 1].tolist()),
                    "prediction": f"random with probability {float(probability[row, 1]):.2f}",
                    "truth": "random" if int(batch["next_sentence_label"][row]) else "follows",
                }
            )
        return rows

    def forward_flops(self, encoder: TextEncoder, samples: int, sequence_length: int) -> float:
        """Operations of pooler and classifier."""
        return 2.0 * samples * encoder.width * (encoder.width + 2)

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
