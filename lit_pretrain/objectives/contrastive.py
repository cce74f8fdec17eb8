"""Contrastive learning of texts and pictures: which text belongs to which picture of a batch?

CLIP (Radford et al. 2021, arXiv:2103.00020) asks it as a choice among the whole batch, both ways, with a learned
temperature; SigLIP (Zhai et al. 2023, arXiv:2303.15343) as a yes or no for every pair, with a learned bias. Both work
on normalised embeddings in float32, whatever the towers' precision.

A batch may hold the same caption or the same picture twice. Taken as negatives they ask for what cannot be (false
negatives); they can be left out, or be right answers too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from lit_pretrain.errors import UserError
from lit_pretrain.objectives.gathering import first_row, gather_rows
from lit_pretrain.objectives.objective import ObjectiveOutput

# The authors keep CLIP's logits from growing beyond 100 times the cosine.
LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class Pairs:
    """Texts and pictures that belong together, row by row.

    Attributes:
        texts: (B, E) embeddings of length 1.
        pictures: (B, E) embeddings of length 1.
        text_keys: (B,) integers, equal for equal captions.
        picture_keys: (B,) integers, equal for equal pictures.
    """

    texts: Tensor
    pictures: Tensor
    text_keys: Tensor
    picture_keys: Tensor


class Contrastive(nn.Module):
    """CLIP's or SigLIP's loss.

    Args:
        loss: `clip`, cross-entropy over the batch both ways, or `siglip`, a sigmoid for every pair.
        temperature: By which cosines are divided at first; null takes the papers' 0.07 and 0.1. It is learned, and
            clip's never falls below 0.01.
        bias: siglip's, added to the logits at first; null takes -ln(B - 1) of the batch, for which all pairs together
            are as often right as they are (the paper's -10 is that of its batches of 22,000).
        duplicates: What becomes of pairs that are right by chance, since their captions or their pictures are equal:
            `ignore` takes them as wrong, as the papers do, `mask` leaves them out, `soft` takes them as right too.
    """

    name = "contrastive"

    def __init__(
        self,
        loss: Literal["clip", "siglip"] = "clip",
        temperature: float | None = None,
        bias: float | None = None,
        duplicates: Literal["ignore", "mask", "soft"] = "ignore",
    ) -> None:
        super().__init__()
        if temperature is not None and not 1.0 / LARGEST_SCALE <= temperature <= 1.0:
            raise UserError(f"objective.temperature is {temperature}: give a number from 0.01 to 1, or null.")
        if bias is not None and loss == "clip":
            raise UserError(f"objective.bias is {bias}, and only siglip's loss has one: leave it out, or take siglip.")
        self.loss = loss
        self.temperature = temperature
        self.bias = bias
        self.duplicates = duplicates
        start = temperature or {"clip": 0.07, "siglip": 0.1}[loss]
        self.log_scale = nn.Parameter(torch.tensor(-math.log(start)))
        self.logit_bias = nn.Parameter(torch.tensor(bias or 0.0)) if loss == "siglip" else None

    def settings(self) -> dict[str, Any]:
        """Arguments that build this again, primitives only."""
        return {name: getattr(self, name) for name in ("loss", "temperature", "bias", "duplicates")}

    @torch.no_grad()
    def fit_to(self, batch_size: int) -> None:
        """Set the bias that waits for the batch's size, of all processes together.

        Raises:
            UserError: If there is nothing to compare with.
        """
        if batch_size < 2:
            raise UserError(
                f"A batch of {batch_size} has no other pair to compare with: raise data.batch_size, many times if the "
                "memory allows it (model.chunk_size saves some)."
            )
        if self.logit_bias is not None and self.bias is None:
            self.logit_bias.fill_(-math.log(batch_size - 1))

    @torch.no_grad()
    def start_at(self, log_scale: float, bias: float | None = None) -> None:
        """Begin where another training has come to.

        Args:
            log_scale: Logarithm of the inverse temperature.
            bias: siglip's; from then on it does not wait for the batch's size.
        """
        self.log_scale.fill_(log_scale)
        if self.logit_bias is not None and bias is not None:
            self.bias = bias
            self.logit_bias.fill_(bias)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the scale within 1 and 100, after each step of the optimiser; siglip's is free."""
        if self.loss == "clip":
            self.log_scale.clamp_(0.0, math.log(LARGEST_SCALE))

    def chance(self, batch_size: int) -> float:
        """Loss (nats) of a model that knows nothing but how many pairs there are."""
        if self.loss == "clip":
            return math.log(batch_size)
        others = batch_size - 1
        return math.log(batch_size) + (others * math.log(batch_size / others) if others else 0.0)

    def compute(self, pairs: Pairs, across_processes: bool = True) -> ObjectiveOutput:
        """Loss and statistics of this process's rows against those of all processes.

        Args:
            pairs: Of this process, as many as of every other.
            across_processes: Whether other processes' rows belong to the batch; false where each has all of it.

        Returns:
            The loss, whose mean over the processes is that of the whole batch, with what it counts.
        """
        both = torch.cat([pairs.texts, pairs.pictures], dim=1).float()
        keys = torch.stack([pairs.text_keys, pairs.picture_keys], dim=1)
        everyone = gather_rows if across_processes else (lambda one: one)
        all_texts, all_pictures = everyone(both).chunk(2, dim=1)
        own_texts, own_pictures = both.chunk(2, dim=1)
        rows = len(both)
        own = torch.arange(rows, device=both.device) + (first_row(rows) if across_processes else 0)
        same_text, same_picture = equal_keys(keys, everyone(keys), own)
        with torch.autocast(both.device.type, enabled=False):
            scale = self.log_scale.float().exp()
            from_pictures = scale * own_pictures @ all_texts.T
            # Every pair of siglip's stands in one of the processes' rows from pictures already.
            from_texts = scale * (own_texts if self.loss == "clip" else own_texts.detach()) @ all_pictures.T
            by_chance = same_text | same_picture
            if self.loss == "clip":
                halves = [self._choice(logits, own, by_chance) for logits in (from_pictures, from_texts)]
                loss = torch.stack(halves).mean()
            else:
                loss = self._yes_or_no(from_pictures + self.logit_bias.float(), own, by_chance)
        count = torch.tensor(float(rows), device=both.device)
        accuracies = {
            "text_to_picture_accuracy": self._hits(from_texts, own, by_chance),
            "picture_to_text_accuracy": self._hits(from_pictures, own, by_chance),
        }
        shares = {"duplicate_captions": same_text, "duplicate_pictures": same_picture}
        statistics = {
            "loss": (loss.detach() * count, count),
            "loss_over_chance": (loss.detach() / self.chance(len(all_texts)) * count, count),
            "temperature": (count / scale.detach(), count),
            **({} if self.logit_bias is None else {"bias": (self.logit_bias.detach() * count, count)}),
            **{name: (hits, count) for name, hits in accuracies.items()},
            **{name: (same.any(dim=1).sum().float(), count) for name, same in shares.items()},
            "false_negatives": (by_chance.sum().float(), count),
        }
        return ObjectiveOutput(loss, statistics)

    def _choice(self, logits: Tensor, own: Tensor, by_chance: Tensor) -> Tensor:
        """Cross-entropy of rows (R, B) whose right answers stand at `own`, and by chance elsewhere too."""
        if self.duplicates == "soft":
            right = by_chance.float()
            right[torch.arange(len(own), device=own.device), own] = 1.0
            return functional.cross_entropy(logits, right / right.sum(dim=1, keepdim=True))
        if self.duplicates == "mask":
            logits = logits.masked_fill(by_chance, float("-inf"))
        return functional.cross_entropy(logits, own)

    def _yes_or_no(self, logits: Tensor, own: Tensor, by_chance: Tensor) -> Tensor:
        """Sigmoid loss of all pairs of the rows (R, B), summed over a row and averaged over the rows."""
        signs = torch.full_like(logits, -1.0)
        signs[torch.arange(len(own), device=own.device), own] = 1.0
        if self.duplicates == "soft":
            signs = torch.where(by_chance, 1.0, signs)
        losses = -functional.logsigmoid(signs * logits)
        if self.duplicates == "mask":
            losses = losses.masked_fill(by_chance, 0.0)
        return losses.sum() / len(own)

    @staticmethod
    def _hits(logits: Tensor, own: Tensor, by_chance: Tensor) -> Tensor:
        """Rows whose highest logit stands at a right answer, by chance or not."""
        chosen = logits.detach().argmax(dim=1)
        return ((chosen == own) | by_chance.gather(1, chosen[:, None])[:, 0]).sum().float()


def equal_keys(keys: Tensor, all_keys: Tensor, own: Tensor) -> Sequence[Tensor]:
    """Which pairs of different rows have equal texts, and which equal pictures.

    Args:
        keys: (R, 2) keys of text and picture of this process's rows.
        all_keys: (B, 2), of all processes'.
        own: (R,) where this process's rows stand among all.

    Returns:
        Two of (R, B), False where a row meets itself.
    """
    other = torch.ones(len(keys), len(all_keys), dtype=torch.bool, device=keys.device)
    other[torch.arange(len(own), device=own.device), own] = False
    return [(keys[:, None, column] == all_keys[None, :, column]) & other for column in (0, 1)]
