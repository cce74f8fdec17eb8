"""Masked language modelling: BERT's main task (Devlin et al. 2019, arXiv:1810.04805).

A share of the positions is hidden, 80 % as [MASK], 10 % as a random token and 10 % unchanged, and predicted; the loss
is a mean over them. Only hidden positions enter the projection to the vocabulary.
"""

from typing import ClassVar

import torch
from torch import Tensor

from lit_pretrain.backbone.text_encoder import TextEncoder
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_of_pieces
from lit_pretrain.objectives.heads import LanguageModelingHead
from lit_pretrain.objectives.masking import (
    MaskedPositions,
    choose_positions,
    choose_whole_words,
    corrupt,
    masked_counts,
)
from lit_pretrain.objectives.objective import (
    Batch,
    EncoderPass,
    Objective,
    ObjectiveOutput,
    Vocabulary,
    clean_inputs,
    global_mean,
    require_both_sides,
)
from lit_pretrain.objectives.rates import Rate, check_rate, rate_at
from lit_pretrain.required import required


class MaskedLanguageModeling(Objective):
    """Predict hidden word pieces from both sides.

    Args:
        probability: Share of a sequence's positions that is hidden, at least one position; two are the first and the
            last one of the training.
        whole_word: Hide all pieces of a word together.
        mask_share: Share of hidden positions that becomes [MASK].
        random_share: Share that becomes a random ordinary token; the rest is left as it is.
        max_predictions: Cap on the hidden positions of a sequence (20 in the authors' script); null for none.
        weight: Factor of this loss in the sum.
    """

    name = "masked_language_modeling"
    ties_embeddings = True
    packable = True
    training_settings: ClassVar[tuple[str, ...]] = (
        "probability",
        "whole_word",
        "mask_share",
        "random_share",
        "max_predictions",
        "weight",
    )
    uses_pooling = False
    shares_pass = True
    uneven = True
    perplexities = ("loss",)

    # Since `build`; see `remember_vocabulary`.
    special: Tensor
    ordinary: Tensor
    continuation: Tensor
    mask_id: int

    def __init__(
        self,
        probability: Rate = 0.15,
        whole_word: bool = False,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        max_predictions: int | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_rate(f"{type(self).__name__}.probability", probability)
        check_number(f"{type(self).__name__}.max_predictions", max_predictions, least=1)
        if not (mask_share >= 0 and random_share >= 0 and mask_share + random_share <= 1 + 1e-9):
            raise UserError(
                f"MaskedLanguageModeling.mask_share {mask_share} and random_share {random_share} must be shares whose "
                "sum is at most 1."
            )
        self.probability = probability
        self.varies = isinstance(probability, list)
        self.whole_word = whole_word
        self.mask_share = mask_share
        self.random_share = random_share
        self.max_predictions = max_predictions
        self.weight = weight
        self.head: LanguageModelingHead | None = None

    def build(self, encoder: TextEncoder, vocabulary: Vocabulary | None = None) -> None:
        """Make the head and remember which ids are special."""
        if self.head is None:
            self.head = LanguageModelingHead.for_encoder(encoder)
        remember_vocabulary(self, vocabulary)

    def choose(self, batch: Batch, generator: torch.Generator) -> MaskedPositions:
        """Draw the positions to hide."""
        input_ids, attention_mask = batch["input_ids"], batch["attention_mask"].to(torch.bool)
        candidates = attention_mask & ~self.special[input_ids]
        probability = self.rate_now(self.probability)
        counts, largest = masked_counts(attention_mask, candidates, probability, self.max_predictions)
        if self.whole_word:
            return choose_whole_words(candidates, self.continuation[input_ids], counts, largest, generator)
        return choose_positions(candidates, counts, largest, generator)

    def check_encoder(self, encoder: TextEncoder) -> None:
        """Attention must go both ways."""
        require_both_sides(self, encoder, "asks for hidden words by what stands on both sides")

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """There must be a token to hide pieces by."""
        if getattr(vocabulary, "mask_id", None) is None:
            raise UserError(
                f"{type(self).__name__} puts a token in the place of hidden pieces, and the tokenizer has none: start "
                "from a BERT, RoBERTa or ModernBERT, or take CausalLanguageModeling or ContrastiveSpans."
            )

    def make_pass(self, batch: Batch, encoder: TextEncoder, generator: torch.Generator) -> EncoderPass:
        """Hide positions of the clean batch."""
        positions = self.choose(batch, generator)
        corrupted = corrupt(
            batch["input_ids"],
            positions,
            self.mask_id,
            self.ordinary,
            (self.mask_share, self.random_share),
            generator,
        )
        targets = {"indices": positions.indices, "valid": positions.valid}
        return EncoderPass(clean_inputs(batch) | {"input_ids": corrupted}, targets)

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: TextEncoder
    ) -> ObjectiveOutput:
        """Cross-entropy at the hidden positions."""
        positions = MaskedPositions(targets["indices"], targets["valid"])
        result = required(self.head).cross_entropy(
            positions.gather(features).flatten(0, 1),
            required(encoder.embeddings.token).weight,
            positions.gather(batch["input_ids"]).flatten(),
            positions.valid.flatten(),
        )
        return language_modeling_output(result.total, result.correct, positions.valid.sum(), self.training)

    def terms(self, targets: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The hidden positions."""
        return {"loss": targets["valid"].sum()}

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """By how often each word piece occurs."""
        return chance_of_pieces(frequencies)

    @torch.no_grad()
    def examples(
        self, encoder: TextEncoder, batch: Batch, vocabulary: Vocabulary, generator: torch.Generator, count: int = 8
    ) -> list[dict[str, str]]:
        """Sentences with their hidden positions as underscores, the predictions, and the truth."""
        encoder_pass = self.make_pass(batch, encoder, generator)
        features = encoder.forward_features(**encoder_pass.inputs)[:count]
        positions = MaskedPositions(encoder_pass.targets["indices"][:count], encoder_pass.targets["valid"][:count])
        logits = required(self.head).logits(positions.gather(features), required(encoder.embeddings.token).weight)
        guesses, hidden = logits.argmax(dim=-1), positions.gather(batch["input_ids"][:count])
        rows = []
        for row in range(len(hidden)):
            order = [k for k in positions.indices[row].argsort().tolist() if bool(positions.valid[row, k])]
            ids = batch["input_ids"][row][batch["attention_mask"][row].to(torch.bool)].tolist()
            for k in order:
                ids[int(positions.indices[row, k])] = vocabulary.mask_id
            rows.append(
                {
                    "masked": vocabulary.decode(ids, keep_special=True),
                    "prediction": " ".join(vocabulary.id_to_token(int(guesses[row, k])) for k in order),
                    "truth": " ".join(vocabulary.id_to_token(int(hidden[row, k])) for k in order),
                }
            )
        return rows

    def forward_flops(self, encoder: TextEncoder, samples: int, sequence_length: int) -> float:
        """Operations of the head at the hidden positions, on average over the training."""
        hidden = max(1, round(rate_at(self.probability, 0.5) * sequence_length))
        return required(self.head).forward_flops(samples * min(hidden, self.max_predictions or hidden))

    def huggingface_names(self) -> dict[str, str]:
        """The MLM head as `BertForPreTraining` names it."""
        return LanguageModelingHead.huggingface_names("head")


def remember_vocabulary(objective: MaskedLanguageModeling, vocabulary: Vocabulary | None) -> None:
    """Keep on the objective what masking needs of the tokenizer, as buffers that follow it to its device.

    They are not saved: a checkpoint carries the whole tokenizer.
    """
    if vocabulary is None:
        raise UserError(f"{type(objective).__name__} needs the tokenizer to know its special tokens: pass vocabulary.")
    objective.check_vocabulary(vocabulary)
    special = torch.zeros(vocabulary.vocabulary_size, dtype=torch.bool)
    special[list(vocabulary.special_ids)] = True
    objective.mask_id = int(vocabulary.mask_id)
    objective.register_buffer("special", special, persistent=False)
    # By a list and not by `nonzero`, which has no answer where a model is built without memory (the meta device).
    ordinary = sorted(set(range(vocabulary.vocabulary_size)) - set(vocabulary.special_ids))
    objective.register_buffer("ordinary", torch.tensor(ordinary), persistent=False)
    continuation = torch.as_tensor(vocabulary.continuation_mask, dtype=torch.bool)
    objective.register_buffer("continuation", continuation, persistent=False)


def language_modeling_output(total: Tensor, correct: Tensor, count: Tensor, training: bool) -> ObjectiveOutput:
    """Loss and statistics of a task that predicts word pieces."""
    statistics = {"loss": (total.detach(), count), "accuracy": (correct, count)}
    return ObjectiveOutput(global_mean(total, count, training), statistics)
