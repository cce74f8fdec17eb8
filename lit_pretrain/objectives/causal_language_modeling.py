"""Causal language modelling: predict the next token from those before it (Radford et al. 2018, GPT).

The same backbone with a causal mask and the same head as masked language modelling, so that the two can be compared on
equal terms. Give it contiguous text (data.layout: segments): the start of a random second sentence cannot be foreseen.
"""

import torch
from torch import Tensor

from lit_pretrain.backbone.text_encoder import TextEncoder
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_of_pieces
from lit_pretrain.objectives.heads import LanguageModelingHead
from lit_pretrain.objectives.masked_language_modeling import language_modeling_output
from lit_pretrain.objectives.objective import (
    Batch,
    EncoderPass,
    Objective,
    ObjectiveOutput,
    Vocabulary,
    clean_inputs,
)
from lit_pretrain.required import required


class CausalLanguageModeling(Objective):
    """Predict every next token of a sequence, its final [SEP] included.

    Args:
        weight: Factor of this loss in the sum.
    """

    name = "causal_language_modeling"
    ties_embeddings = True
    packable = True
    fields_ahead = ("documents",)
    uses_pooling = False
    uneven = True
    perplexities = ("loss",)

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.head: LanguageModelingHead | None = None

    def build(self, encoder: TextEncoder, vocabulary: Vocabulary | None = None) -> None:
        """Make the head."""
        if self.head is None:
            self.head = LanguageModelingHead.for_encoder(encoder)

    def make_pass(self, batch: Batch, encoder: TextEncoder, generator: torch.Generator) -> EncoderPass:
        """The clean batch with a causal mask."""
        return EncoderPass(clean_inputs(batch) | {"causal": True})

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: TextEncoder
    ) -> ObjectiveOutput:
        """Cross-entropy of every real next token."""
        valid = next_tokens(batch)
        result = required(self.head).cross_entropy(
            features[:, :-1].flatten(0, 1),
            required(encoder.embeddings.token).weight,
            batch["input_ids"][:, 1:].flatten(),
            valid.flatten(),
        )
        return language_modeling_output(result.total, result.correct, valid.sum(), self.training)

    def terms(self, targets: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The next tokens."""
        return {"loss": next_tokens(batch).sum()}

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """By how often each word piece occurs."""
        return chance_of_pieces(frequencies)

    @torch.no_grad()
    def examples(
        self, encoder: TextEncoder, batch: Batch, vocabulary: Vocabulary, generator: torch.Generator, count: int = 8
    ) -> list[dict[str, str]]:
        """The first half of a text, the model's guess of each next token of the second half, and the truth."""
        features = encoder.forward_features(**clean_inputs(batch), causal=True)[:count]
        guesses = required(self.head).logits(features, required(encoder.embeddings.token).weight).argmax(dim=-1)
        rows = []
        for row in range(len(guesses)):
            real = batch["attention_mask"][row].bool()
            # Of a packed row the first text.
            length = int((real & (batch["documents"][row] == 0) if "documents" in batch else real).sum())
            half = max(1, length // 2)
            ids = batch["input_ids"][row, :length].tolist()
            rows.append(
                {
                    "given": vocabulary.decode(ids[:half]),
                    "prediction": " ".join(map(vocabulary.id_to_token, guesses[row, half - 1 : length - 1].tolist())),
                    "truth": " ".join(map(vocabulary.id_to_token, ids[half:])),
                }
            )
        return rows

    def forward_flops(self, encoder: TextEncoder, samples: int, sequence_length: int) -> float:
        """Operations of the head at every position but the last."""
        return required(self.head).forward_flops(samples * (sequence_length - 1))

    def huggingface_names(self) -> dict[str, str]:
        """The head as `BertLMHeadModel` names it."""
        return LanguageModelingHead.huggingface_names("head")


def next_tokens(batch: Batch) -> Tensor:
    """(B, N - 1) booleans, where a real token follows a real one of the same text."""
    real = batch["attention_mask"].to(torch.bool)
    valid = real[:, 1:] & real[:, :-1]
    if "documents" in batch:
        valid = valid & (batch["documents"][:, 1:] == batch["documents"][:, :-1])
    return valid
