"""Which positions BERT hides, and what it puts there (Devlin et al. 2019, arXiv:1810.04805, appendix A.1).

Everything is batched on the batch's device and shapes do not depend on the draws, so nothing waits for the device.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class MaskedPositions:
    """Chosen positions, padded to the same number for every row.

    Attributes:
        indices: (B, K) positions in the sequence.
        valid: (B, K) booleans; False where a row has fewer than K chosen positions.
    """

    indices: Tensor
    valid: Tensor

    def gather(self, values: Tensor) -> Tensor:
        """Pick (B, N) or (B, N, D) values at the chosen positions: (B, K) or (B, K, D)."""
        if values.ndim == 2:
            return values.gather(1, self.indices)
        return values.gather(1, self.indices[..., None].expand(-1, -1, values.shape[-1]))


def masked_counts(
    attention_mask: Tensor, candidates: Tensor, probability: float, max_predictions: int | None
) -> tuple[Tensor, int]:
    """How many positions each row hides: max(1, round(probability x length)), capped.

    Args:
        attention_mask: (B, N) booleans; the length counts [CLS] and [SEP] as the authors do.
        candidates: (B, N) booleans, positions that may be hidden; a row cannot hide more than it has.
        probability: Share of positions.
        max_predictions: Cap on a row, or null.

    Returns:
        (B,) counts, and the largest that this sequence length can give.
    """
    # Python's round on doubles, as in the authors' script: float32 would round 0.15 x 70 another way. Computed on the
    # device, since a table made here would have to be copied there, which waits.
    lengths = attention_mask.sum(dim=1)
    counts = (probability * lengths.double()).round().long().clamp(min=1)
    largest = max(1, round(probability * attention_mask.shape[1]))
    if max_predictions is not None:
        counts, largest = counts.clamp(max=max_predictions), min(largest, max_predictions)
    return torch.minimum(counts, candidates.sum(dim=1)), largest


def choose_positions(candidates: Tensor, counts: Tensor, largest: int, generator: torch.Generator) -> MaskedPositions:
    """Draw each row's positions without replacement.

    Args:
        candidates: (B, N) booleans.
        counts: (B,) number of positions, at most the row's candidates.
        largest: K, at least every count.
        generator: On the same device.
    """
    scores = torch.rand(candidates.shape, generator=generator, device=candidates.device, dtype=torch.float32)
    scores = scores.masked_fill(~candidates, -1.0)
    indices = scores.topk(largest, dim=1).indices
    return MaskedPositions(indices, torch.arange(largest, device=counts.device) < counts[:, None])


def choose_whole_words(
    candidates: Tensor, continues: Tensor, counts: Tensor, largest: int, generator: torch.Generator
) -> MaskedPositions:
    """Draw whole words until the count is reached; a word that would exceed it is passed over, as the authors do.

    Args:
        candidates: (B, N) booleans.
        continues: (B, N) booleans, pieces such as "##ing"; one belongs to the piece before unless that is special.
        counts: (B,) pieces to hide; a row may hide fewer if no word fits.
        largest: K, at least every count.
        generator: On the same device.
    """
    batch, length = candidates.shape
    previous = torch.zeros_like(candidates)
    previous[:, 1:] = candidates[:, :-1]
    starts = candidates & ~(continues & previous)
    word = starts.cumsum(dim=1) * candidates  # 1, 2, ... inside words, 0 outside
    sizes = torch.zeros(batch, length + 1, dtype=torch.long, device=word.device)
    sizes.scatter_add_(1, word, torch.ones_like(word))
    sizes[:, 0] = 0
    scores = torch.rand((batch, length + 1), generator=generator, device=word.device, dtype=torch.float32)
    scores = scores.masked_fill(sizes == 0, -1.0)
    order = scores.argsort(dim=1, descending=True)
    taken = take_while_it_fits(sizes.gather(1, order), counts, largest)
    chosen_words = torch.zeros_like(taken).scatter_(1, order, taken)
    chosen = chosen_words.gather(1, word) & candidates
    indices = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :largest]
    return MaskedPositions(indices, chosen.gather(1, indices))


def take_while_it_fits(sizes: Tensor, room: Tensor, largest: int) -> Tensor:
    """Go through sizes in their order and take each that fits into the room that those before it have left.

    One after the other would be a few kernels for each place. Here it is a few for each power of two up to the largest
    room. As long as the room r is at least t = 2 ** k (and below 2 t), every size below t fits, and one of t and above
    leaves less than t: so up to the place where the room falls below t, what is taken are the sizes below t, which a
    cumulative sum counts, and in the end perhaps a larger one. From there on t is halved.

    Args:
        sizes: (B, N) integers; 0 for what is not there.
        room: (B,) integers, at most `largest`.
        largest: Bound of the room.

    Returns:
        (B, N) booleans: what is taken.
    """
    taken, pending, room = torch.zeros_like(sizes, dtype=torch.bool), sizes > 0, room[:, None]
    for power in reversed(range(largest.bit_length())):
        threshold = 2**power
        small = pending & (sizes < threshold)
        remaining = room - (sizes * small).cumsum(dim=1)
        fits = pending & ~small & (sizes <= remaining)
        # Where the room has fallen below the threshold; rows that begin below it wait for a smaller one.
        ends = (fits | (remaining < threshold)).long()
        reached = pending & (ends.cumsum(dim=1) - ends == 0) & (room >= threshold)
        now = reached & (small | fits)
        taken, pending, room = taken | now, pending & ~reached, room - (sizes * now).sum(dim=1, keepdim=True)
    return taken


def corrupt(
    input_ids: Tensor,
    positions: MaskedPositions,
    mask_id: int,
    ordinary_ids: Tensor,
    shares: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Replace the chosen positions, each by its own draw: by [MASK], by a random ordinary token, or not at all.

    Args:
        input_ids: (B, N) clean word pieces.
        positions: The chosen positions.
        mask_id: The id of [MASK].
        ordinary_ids: (W,) ids that a random token may have: no special token.
        shares: Probabilities of [MASK] and of a random token; the rest stays.
        generator: On the same device.

    Returns:
        (B, N) corrupted word pieces; the clean ones are not touched.
    """
    shape, device = positions.indices.shape, input_ids.device
    draw = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
    random_token = ordinary_ids[torch.randint(len(ordinary_ids), shape, generator=generator, device=device)]
    clean = positions.gather(input_ids)
    masked, randomised = shares
    replacement = torch.where(draw < masked + randomised, random_token, clean)
    replacement = replacement.masked_fill(draw < masked, mask_id)
    return input_ids.scatter(1, positions.indices, torch.where(positions.valid, replacement, clean))


def visible_tokens(mask: Tensor, share: float, generator: torch.Generator) -> MaskedPositions:
    """Word dropout of deep averaging networks (Iyyer et al. 2015, doi:10.3115/v1/P15-1162), a new draw every time. What
    is hidden is left out of the sequence, as in masked autoencoders (He et al. 2022, arXiv:2111.06377), and costs
    nothing.

    Args:
        mask: (B, N), 1 where a token is real. The first of each text, [CLS], is never hidden.
        share: Of each text's tokens, rounded down, that is hidden.
        generator: Source of the draw, on the mask's device.

    Returns:
        Positions of what is seen, in their order, as many for each row as the longest text could have: (B, M).
    """
    real = mask.to(torch.bool)
    draw = torch.rand(mask.shape, generator=generator, device=mask.device, dtype=torch.float32)
    draw[:, 0] = -1.0
    length = mask.shape[1]
    longest = seen_length(length, share)
    order = draw.masked_fill(~real, 2.0).argsort(dim=1)[:, :longest]
    lengths = real.sum(dim=1, keepdim=True, dtype=torch.float64)
    counts = lengths - torch.floor(share * lengths)
    valid = torch.arange(longest, device=mask.device) < counts
    indices = order.masked_fill(~valid, length).sort(dim=1).values
    # What is past the end is seen by nobody: any position will do.
    return MaskedPositions(indices.clamp(max=length - 1), valid)


def seen_length(length: int, share: float) -> int:
    """How many of a text's tokens are seen when a share of them is hidden."""
    return length - math.floor(share * length)
