"""Trained text encoders that others learn from (`lit_pretrain.objectives.feature_distillation`)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_pretrain.backbone.text_encoder import TextEncoder
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.text_encoding import TextSettings, batch_of
from lit_pretrain.errors import UserError
from lit_pretrain.modules.starting_points import load_starting_point
from lit_pretrain.objectives.feature_distillation import FeatureDistillation
from lit_pretrain.objectives.objective import Batch, Objective, Vocabulary

# Pieces of a teacher without a position table for one of the student's: nobody cuts words that much finer.
LONGEST_TEXT = 8


@dataclass(frozen=True)
class TextTeacher:
    """A trained encoder; no module, so that its weights are nobody's parameters.

    Attributes:
        encoder: Frozen, in evaluation mode.
        tokenizer: What it reads.
    """

    encoder: TextEncoder
    tokenizer: TextTokenizer

    @property
    def width(self) -> int:
        """Its features."""
        return self.encoder.width

    def features(self, batch: Batch, vocabulary: Vocabulary, device: torch.device) -> Tensor:
        """Pooled features (B, width) of a clean batch of word pieces; without gradients.

        Args:
            batch: Of the student.
            vocabulary: Whose word pieces these are.
            device: Where the features are wanted.
        """
        names = ("input_ids", "attention_mask", "token_type_ids", "padded")
        known = getattr(vocabulary, "hash", None) == self.tokenizer.hash
        inputs = batch if known else self.read_again(batch, vocabulary)
        inputs = {name: inputs[name] for name in names if name in inputs}
        inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        with torch.no_grad():
            return self.encoder.to(device)(**inputs)

    def read_again(self, batch: Batch, vocabulary: Vocabulary) -> Batch:
        """The batch's texts in the teacher's own word pieces, cut to the positions that it has."""
        mask = batch["attention_mask"].to(torch.bool)
        rows = zip(batch["input_ids"].tolist(), mask.sum(dim=1).tolist(), strict=True)
        texts = [vocabulary.decode(ids[:length]) for ids, length in rows]
        learned = self.encoder.positions == "learned"
        longest = self.encoder.max_positions if learned else LONGEST_TEXT * mask.shape[1]
        return batch_of({"text": texts}, self.tokenizer, TextSettings(("text",), longest))


def give_teachers(objectives: Iterable[Objective]) -> None:
    """Let those objectives find their teachers that have one."""
    for objective in objectives:
        if isinstance(objective, FeatureDistillation):
            objective.load_teacher = load_teacher


def load_teacher(reference: str) -> TextTeacher:
    """Read a teacher.

    Args:
        reference: As `model.init_from`.

    Raises:
        UserError: If it cannot be read, is of pictures, or has no tokenizer.
    """
    start = load_starting_point(reference)
    if not isinstance(start.encoder, TextEncoder):
        raise UserError(f"FeatureDistillation.teacher is {reference}, an encoder of pictures: name one of texts.")
    if start.tokenizer is None:
        raise UserError(
            f"FeatureDistillation.teacher {reference} brings no tokenizer, without which nobody knows what it reads: "
            "put tokenizer.json or vocab.txt into its directory."
        )
    return TextTeacher(start.encoder.eval().requires_grad_(False), start.tokenizer)
