"""What the pretext tasks that choose one of two classes for a pair of texts have in common: BERT's head.

Devlin et al. 2019 (arXiv:1810.04805), section 3.1: a tanh pooler on [CLS] and a two-way linear layer.
"""

from torch import Tensor, nn

from lit_pretrain.backbone.pooling import BertPooler
from lit_pretrain.backbone.text_encoder import TextEncoder, initialise
from lit_pretrain.objectives.objective import Batch, Objective, Vocabulary, require_both_sides
from lit_pretrain.required import required


class PairClassification(Objective):
    """Base of the tasks on pairs of texts; it has no pass of its own, see `Objective.passes`.

    Args:
        weight: Factor of this loss in the sum.
    """

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
        """Scores (B, 2) of features (B, N, D): label 0, label 1."""
        return required(self.classifier)(required(self.pooler or encoder.pooler)(features))

    def forward_flops(self, encoder: TextEncoder, samples: int, sequence_length: int) -> float:
        """Operations of pooler and classifier."""
        return 2.0 * samples * encoder.width * (encoder.width + 2)

    def rows_of(
        self,
        features: Tensor,
        batch: Batch,
        labels: Tensor,
        names: tuple[str, str],
        encoder: TextEncoder,
        vocabulary: Vocabulary,
        count: int,
    ) -> list[dict[str, str]]:
        """The first pairs for a person to read, with the probability of label 1, and the truth.

        Args:
            features: (B, N, D).
            batch: As it was encoded.
            labels: (B,), 0 or 1.
            names: Of the two labels.
            encoder: Whose pooler may be read.
            vocabulary: Turns ids into words.
            count: Rows at most.
        """
        probabilities = self.logits(features[:count], encoder).float().softmax(dim=-1)[:, 1].tolist()
        rows = []
        for row, probability in enumerate(probabilities):
            real = batch["attention_mask"][row].bool()
            ids, segments = batch["input_ids"][row][real], batch["token_type_ids"][row][real]
            rows.append(
                {
                    "first": vocabulary.decode(ids[segments == 0].tolist()),
                    "second": vocabulary.decode(ids[segments == 1].tolist()),
                    "prediction": f"{names[1]} with probability {probability:.2f}",
                    "truth": names[int(labels[row])],
                }
            )
        return rows
