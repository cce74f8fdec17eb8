"""Texts cut into halves, each a sequence of its own: what objectives read that ask one half about the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.objectives.objective import Batch, EncoderPass

# Two spans of three tokens, with [CLS] and [SEP].
SHORTEST_SEQUENCE = 8


def halves_pass(batch: Batch) -> EncoderPass:
    """All first halves, then all second halves, of a clean batch.

    Its targets: `ids` (2 B, N), `mask` of what is no padding, and `words` of what is neither padding nor special.
    """
    ids, mask = cut_in_halves(batch["input_ids"], batch["attention_mask"])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in batch:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    places = torch.arange(ids.shape[1], device=ids.device)
    words = ((places > 0) & (places < mask.sum(dim=1, keepdim=True) - 1)).to(mask.dtype)
    return EncoderPass(inputs, {"ids": ids, "mask": mask, "words": words})


def check_halves(name: str, batch_keys: Sequence[str], sequence_length: int) -> None:
    """Refuse data that an objective cannot cut: pairs of texts, or too short ones.

    Raises:
        UserError: In one sentence.
    """
    if "next_sentence_label" in batch_keys:
        raise UserError(f"{name} cuts contiguous text, and this data makes pairs: set data.layout to segments.")
    if sequence_length < SHORTEST_SEQUENCE:
        raise UserError(
            f"{name} cuts sequences into halves, and data.sequence_length is {sequence_length}: give at least "
            f"{SHORTEST_SEQUENCE} (128 serve it well)."
        )


def cut_in_halves(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of some sequences as sequences of their own, each between [CLS] and [SEP].

    A text of one token is both of its halves.

    Args:
        ids: (B, N), [CLS], a text, [SEP] and padding.
        mask: (B, N), 1 at what is no padding.

    Returns:
        (2 B, ceil((N - 2) / 2) + 2) tokens, the first halves before all second ones, and their mask.
    """
    length = mask.sum(dim=1, keepdim=True) - 2  # of the text
    half = (length // 2).clamp(min=1)
    starts = torch.cat([torch.ones_like(half), torch.minimum(half + 1, length)])
    ends = torch.cat([half, length])  # inclusive
    places = torch.arange((ids.shape[1] - 1) // 2 + 2, device=ids.device)
    within = starts + places - 1
    closing = ends - starts + 2  # the place of [SEP]
    within = torch.where(places == closing, torch.cat([length, length]) + 1, within)
    within = torch.where((places == 0) | (places > closing), torch.zeros_like(within), within)
    return ids.repeat(2, 1).gather(1, within), (places <= closing).to(mask.dtype)
