"""Short sequences first (`model.short_sequences`): for a share of the training each of a batch is cut into several.

Attention costs the square of the length, and most of what is learned at first stands nearby: BERT's authors train nine
tenths of the steps at a quarter of the length (Devlin et al. 2019, arXiv:1810.04805, appendix A.2). Here a batch of B
sequences of L tokens is one of n B of L / n, so that a step sees as many tokens and the batch grows smaller with the
sequences' growth. Cut is what the loader has read, on the device: the order of the data, and so an exact resume, do not
know of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_pretrain.data.loading import FOLLOWING
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.objectives.objective import Batch, Objective

# Fields with a token each, and with one value a sequence.
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
SEQUENCES = ("sample_id",)
LEAST_TOKENS = 8


@dataclass(frozen=True)
class ShortSequencesConfig:
    """Settings of short sequences.

    Args:
        parts: Into how many each sequence is cut; 1 cuts none.
        until: Share of the training after which they are whole.
    """

    parts: int = 1
    until: float = 0.9

    def __post_init__(self) -> None:
        """Refuse what cuts nothing."""
        check_number("model.short_sequences.parts", self.parts, least=1)
        check_number("model.short_sequences.until", self.until, above=0, most=1)

    def check(self, objectives: Iterable[Objective], data: Any) -> None:
        """Refuse sequences that cannot be cut, and tasks that need whole ones.

        Args:
            objectives: What is trained on.
            data: With `sequence_length` and `layout`.

        Raises:
            UserError: In one sentence.
        """
        if self.parts == 1:
            return
        setting, length = f"model.short_sequences.parts is {self.parts}", data.sequence_length
        if length % self.parts or length // self.parts < LEAST_TOKENS:
            raise UserError(
                f"{setting}, into which data.sequence_length {length} cannot be cut: give a number that divides it and "
                f"leaves at least {LEAST_TOKENS} tokens."
            )
        if getattr(data, "layout", "") != "segments":
            raise UserError(
                f"{setting}, and pairs of texts cannot be cut: set data.layout to segments, or leave it out."
            )
        if getattr(data, "packing", False):
            raise UserError(
                f"{setting}, which would cut through the texts that data.packing puts together: leave one of the two "
                "out."
            )
        whole = [type(objective).__name__ for objective in objectives if not objective.perplexities]
        if whole:
            raise UserError(
                f"{setting}, and {whole[0]} is about whole texts: leave one of the two out (predicting words goes with "
                "parts of them)."
            )


def cut(batch: Batch, parts: int, tokenizer: Any) -> Batch:
    """A batch of sequences (B, L) as one of their parts (B * parts, L / parts).

    The edges of a part become [CLS] and, where the text goes on, [SEP]. A part behind a text's end is [CLS] alone.

    Args:
        batch: Some of a batch's fields, and with `FOLLOWING` those of the step's later batches.
        parts: By which L can be divided.
        tokenizer: With `cls_id` and `sep_id`.
    """
    parted = dict(batch)
    for name in TOKENS:
        if name in batch:
            parted[name] = batch[name].reshape(len(batch[name]) * parts, -1).clone()
    for name in SEQUENCES:
        if name in batch:
            parted[name] = torch.as_tensor(batch[name]).repeat_interleave(parts)
    ids, mask = parted["input_ids"], parted["attention_mask"]
    ends_later = torch.ones(parts, dtype=torch.bool, device=ids.device)
    ends_later[-1] = False
    goes_on: Tensor = ends_later.repeat(len(ids) // parts) & mask[:, -1].bool()
    ids[:, -1] = torch.where(goes_on, tokenizer.sep_id, ids[:, -1])
    ids[:, 0], mask[:, 0] = tokenizer.cls_id, 1
    if FOLLOWING in batch:
        parted[FOLLOWING] = [cut(later, parts, tokenizer) for later in batch[FOLLOWING]]
    return parted
