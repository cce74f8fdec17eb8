"""Texts cut into halves, each a sequence of its own: what objectives read that ask one half about the other."""

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.pooling import mean_pool
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.masking import seen_length, visible_tokens
from lit_pretrain.objectives.objective import Batch, EncoderPass, Objective
from lit_pretrain.required import required

# Two spans of three tokens, with [CLS] and [SEP].
SHORTEST_SEQUENCE = 8
# Any constant of 63 bits makes another seed of a seed.
HIDDEN_STREAM = 0x5851F42D4C957F2D


def halves_pass(batch: Batch, generator: torch.Generator, token_dropout: float = 0.0) -> EncoderPass:
    """All first halves, then all second halves, of a clean batch.

    Its targets: `ids` (2 B, N); `words`, 1 where they are no special token, seen or not; and `mask` (2 B, M), 1 where
    the features are of a token. Hidden ones are left out, so that M is less than N.

    Args:
        batch: Clean batch.
        generator: Whose seed draws what is hidden, whatever it was asked before, so that objectives that share the pass
            hide the same; by a stream of its own, so that it is not tied to what other objectives draw first.
        token_dropout: Share of the tokens that are hidden.
    """
    ids, mask = cut_in_halves(batch["input_ids"], batch["attention_mask"])
    places = torch.arange(ids.shape[1], device=ids.device)
    words = ((places > 0) & (places < mask.sum(dim=1, keepdim=True) - 1)).to(mask.dtype)
    # Of an odd number of tokens, the first half has one token less.
    padded = batch.get("padded", True) or batch["input_ids"].shape[1] % 2 == 1
    inputs = {"input_ids": ids, "padded": padded}
    if token_dropout:
        same = torch.Generator(mask.device).manual_seed(generator.initial_seed() ^ HIDDEN_STREAM)
        seen = visible_tokens(mask, token_dropout, same)
        inputs["positions"], mask = seen.indices, seen.valid.to(mask.dtype)
    inputs["attention_mask"] = mask
    if "token_type_ids" in batch:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return EncoderPass(inputs, {"ids": ids, "mask": mask, "words": words})


def means_of_halves(features: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """The mean of each half's features, (2 B, D), of those of its tokens, (2 B, M, D); what is one already stays.

    Objectives on halves say `reads_mean_by = "mask"`, so that those that share a pass are given one mean.
    """
    return features if features.ndim == 2 else mean_pool(features, targets["mask"])


def shape_of_halves(samples: int, sequence_length: int, token_dropout: float) -> tuple[int, int]:
    """Sequences that `halves_pass` makes of a batch, and how much of them is seen; see `Objective.pass_shape`."""
    return 2 * samples, seen_length((sequence_length - 1) // 2 + 2, token_dropout)


def name_of_pass(objective: str, token_dropout: float) -> str:
    """What is the same for objectives whose pass is the same.

    Raises:
        UserError: If the share is none.
    """
    if not 0.0 <= token_dropout < 1.0:
        raise UserError(f"{objective}.token_dropout is {token_dropout}: give a share from 0 to below 1.")
    return f"halves, {token_dropout} hidden"


def check_hiding(objective: Objective, encoder: nn.Module) -> None:
    """Refuse to hide tokens of an encoder that reads no mask.

    Raises:
        UserError: In one sentence.
    """
    if objective.token_dropout and getattr(encoder, "causal", False):
        raise UserError(
            f"{type(objective).__name__}.token_dropout hides tokens by a mask, which causal encoders ignore: leave it "
            "out, or set encoder.causal to false."
        )


def check_halves(name: str, facts: DataFacts) -> None:
    """Refuse data that an objective cannot cut: pairs of texts, or too short ones.

    Raises:
        UserError: In one sentence.
    """
    if facts.layout == "sentence_pairs" or "next_sentence_label" in facts.fields:
        raise UserError(f"{name} cuts contiguous text, and this data makes pairs: set data.layout to segments.")
    if required(facts.sequence_length) < SHORTEST_SEQUENCE:
        raise UserError(
            f"{name} cuts sequences into halves, and data.sequence_length is {facts.sequence_length}: give at least "
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
