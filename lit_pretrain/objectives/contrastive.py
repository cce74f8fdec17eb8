"""Contrastive learning of texts and pictures: which text belongs to which picture of a batch?

CLIP (Radford et al. 2021, arXiv:2103.00020) asks it as a choice among the whole batch, both ways, with a learned
temperature; SigLIP (Zhai et al. 2023, arXiv:2303.15343) as a yes or no for every pair, with a learned bias. Both work
on normalised embeddings in float32 at least, and keep temperature and bias so, whatever the towers' precision.

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
from torch.autograd.function import once_differentiable

from lit_pretrain.backbone.float32 import Float32State, at_least_float32
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.gathering import first_row, gather_rows
from lit_pretrain.objectives.objective import ObjectiveOutput
from lit_pretrain.required import required

# The authors keep CLIP's logits from growing beyond 100 times the cosine.
LARGEST_SCALE = 100.0
# Logits of more pairs than these are made some rows at a time: with all of them at once, memory would grow with the
# square of the batch. 4 MiB stay in a CPU's cache; an accelerator needs large products, and has room for 256 MiB.
LOGITS_AT_A_TIME = {"cpu": 2**20}
ACCELERATOR_LOGITS_AT_A_TIME = 2**26
# What is counted beside the loss, in the order of `Contrastive.sums`.
COUNTED = (
    "text_to_picture_accuracy",
    "picture_to_text_accuracy",
    "duplicate_captions",
    "duplicate_pictures",
    "false_negatives",
)


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


class Contrastive(Float32State):
    """CLIP's or SigLIP's loss.

    Args:
        loss: `clip`, cross-entropy over the batch both ways, or `siglip`, a sigmoid for every pair.
        temperature: By which cosines are divided at first; null takes the papers' 0.07 and 0.1. It is learned, and
            clip's never falls below 0.01.
        bias: siglip's, added to the logits at first; null takes -ln(B - 1) of the batch, for which all pairs together
            are as often right as they are (the paper's -10 is that of its batches of 22,000).
        duplicates: What becomes of pairs that are right by chance, since their captions or their pictures are equal:
            `ignore` takes them as wrong, as the papers do, `mask` leaves them out, `multi_positive` takes them as right
            too.
    """

    name = "contrastive"

    def __init__(
        self,
        loss: Literal["clip", "siglip"] = "clip",
        temperature: float | None = None,
        bias: float | None = None,
        duplicates: Literal["ignore", "mask", "multi_positive"] = "ignore",
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
        # Of one dimension, since FSDP takes none without any.
        self.log_scale = nn.Parameter(torch.tensor([-math.log(start)], dtype=torch.float32))
        self.logit_bias = nn.Parameter(torch.tensor([bias or 0.0], dtype=torch.float32)) if loss == "siglip" else None
        self.fitted = bias is not None

    def settings(self) -> dict[str, Any]:
        """Arguments that build this again, primitives only."""
        return {name: getattr(self, name) for name in ("loss", "temperature", "bias", "duplicates")}

    @torch.no_grad()
    def fit_to(self, batch_size: int) -> None:
        """Set the bias that waits for the batch's size, of all processes together; once, since it is trained then.

        Raises:
            UserError: If there is nothing to compare with.
        """
        if batch_size < 2:
            raise UserError(
                f"A batch of {batch_size} has no other pair to compare with: raise data.batch_size, many times if the "
                "memory allows it (model.chunk_size saves some)."
            )
        if self.logit_bias is not None and not self.fitted:
            self.logit_bias.fill_(-math.log(batch_size - 1))
        self.fitted = True

    @torch.no_grad()
    def start_at(self, log_scale: float, bias: float | None = None) -> None:
        """Begin where another training has come to.

        Args:
            log_scale: Logarithm of the inverse temperature.
            bias: siglip's; from then on it does not wait for the batch's size.
        """
        self.log_scale.fill_(log_scale)
        if self.logit_bias is not None and bias is not None:
            self.bias, self.fitted = bias, True
            self.logit_bias.fill_(bias)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the scale within 1 and 100, after each step of the optimiser; siglip's is free."""
        if self.loss == "clip":
            self.log_scale.clamp_(0.0, math.log(LARGEST_SCALE))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """As nn.Module's; scalars of earlier versions are taken, and what is loaded is trained already."""
        for name in ("log_scale", "logit_bias"):
            if (value := state_dict.get(prefix + name)) is not None:
                state_dict[prefix + name] = value.reshape(1) if value.ndim == 0 else value
                self.fitted = True
        super()._load_from_state_dict(state_dict, prefix, *arguments)

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
        both = at_least_float32(torch.cat([pairs.texts, pairs.pictures], dim=1))
        keys = torch.stack([pairs.text_keys, pairs.picture_keys], dim=1)
        first, everyone = (first_row(len(both)), gather_rows) if across_processes else (0, lambda one: one)
        all_both, all_keys = everyone(both), everyone(keys)
        # Asked here: within the function gradients are always off, and its inputs require them in any mode.
        learning = torch.is_grad_enabled()
        total, *sums, scores, nearest = _SomeRowsAtATime.apply(
            self, learning, first, keys, all_keys, both, all_both, *self.parameters()
        )
        if self.loss == "siglip":
            # Of all texts the nearest picture of each process's own, and so of all.
            best = everyone(scores[None]).argmax(dim=0, keepdim=True)
            chosen = everyone(nearest[None]).gather(0, best)[0, first : first + len(both)]
            sums[0] = hits(chosen, keys, all_keys)
        loss, count = total / len(both), torch.full((), len(both), device=both.device)
        scale = at_least_float32(self.log_scale.detach()).exp().squeeze()
        statistics = {
            "loss": (loss.detach() * count, count),
            "loss_over_chance": (loss.detach() / self.chance(len(all_both)) * count, count),
            "temperature": (count / scale, count),
            **({} if self.logit_bias is None else {"bias": (self.logit_bias.detach().squeeze() * count, count)}),
            **{name: (total, count) for name, total in zip(COUNTED, sums, strict=True)},
        }
        return ObjectiveOutput(loss, statistics)

    def sums(self, both: Tensor, keys: Tensor, all_both: Tensor, all_keys: Tensor, first: int) -> tuple[Tensor, ...]:
        """Sums over some rows: of the loss, with its gradient, and of each of `COUNTED`.

        For siglip every pair stands in one row from pictures; that the same pairs are seen from texts too is needed for
        the first of `COUNTED` alone, which is 0 here. It follows from what comes last: for each of all texts (B,) the
        highest logit of these rows' pictures, and where that picture stands.

        Args:
            both: (R, 2 E) embeddings of the rows' texts and pictures.
            keys: (R, 2) of the rows.
            all_both: (B, 2 E) of all rows.
            all_keys: (B, 2).
            first: Where the rows begin among all.
        """
        own_texts, own_pictures = both.chunk(2, dim=1)
        all_texts, all_pictures = all_both.chunk(2, dim=1)
        own = torch.arange(first, first + len(both), device=both.device)
        same_text, same_picture = equal_keys(keys, all_keys, own)
        by_chance = same_text | same_picture
        with torch.autocast(both.device.type, enabled=False):
            # FSDP hands them out in 16 bits where it mixes precisions.
            scale = at_least_float32(self.log_scale).exp()
            from_pictures = scale * own_pictures @ all_texts.T
            if self.loss == "clip":
                from_texts = scale * own_texts @ all_pictures.T
                for_pictures, for_texts = (
                    self._choice(logits, own, by_chance) for logits in (from_pictures, from_texts)
                )
                loss = (for_pictures + for_texts) / 2
                text_hits = hits(from_texts.detach().argmax(dim=1), keys, all_keys)
                scores, nearest = both.new_empty(0), own[:0]
            else:
                loss = self._yes_or_no(from_pictures + at_least_float32(required(self.logit_bias)), own, by_chance)
                text_hits = torch.zeros_like(loss)
                scores, nearest = from_pictures.detach().max(dim=0)
        return (
            loss,
            text_hits,
            hits(from_pictures.detach().argmax(dim=1), keys, all_keys),
            same_text.any(dim=1).sum().float(),
            same_picture.any(dim=1).sum().float(),
            by_chance.sum().float(),
            scores,
            nearest + first,
        )

    def _choice(self, logits: Tensor, own: Tensor, by_chance: Tensor) -> Tensor:
        """Cross-entropy, summed over rows (R, B) whose right answers stand at `own`, and by chance elsewhere too."""
        if self.duplicates == "multi_positive":
            right = (by_chance | at_own(own, by_chance.shape[1])).to(logits.dtype)
            return functional.cross_entropy(logits, right / right.sum(dim=1, keepdim=True), reduction="sum")
        if self.duplicates == "mask":
            logits = logits.masked_fill(by_chance, float("-inf"))
        return functional.cross_entropy(logits, own, reduction="sum")

    def _yes_or_no(self, logits: Tensor, own: Tensor, by_chance: Tensor) -> Tensor:
        """Sigmoid loss, summed over all pairs of the rows (R, B)."""
        right = at_own(own, logits.shape[1])
        if self.duplicates == "multi_positive":
            right = right | by_chance
        signs = torch.where(right, 1.0, -1.0)
        losses = -functional.logsigmoid(signs * logits)
        if self.duplicates == "mask":
            losses = losses.masked_fill(by_chance, 0.0)
        return losses.sum()


class _SomeRowsAtATime(torch.autograd.Function):
    """The sums of `Contrastive.sums` over all rows of this process.

    The gradients are made in the forward pass, as in `linear_cross_entropy`: a block's logits are gone before the
    next block's are made. Outside of training (validation, `torch.no_grad`, inference mode), and of inputs that
    require none (frozen ones), there are none to make.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        objective: "Contrastive",
        learning: bool,
        first: int,
        keys: Tensor,
        all_keys: Tensor,
        both: Tensor,
        all_both: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        elements = LOGITS_AT_A_TIME.get(both.device.type, ACCELERATOR_LOGITS_AT_A_TIME)
        rows = max(1, elements // len(all_both))
        places = [place for place, needed in enumerate(ctx.needs_input_grad[5:]) if needed and learning]
        inputs = (both, all_both, *parameters)
        totals = [torch.zeros_like(tensor) if place in places else None for place, tensor in enumerate(inputs)]
        everyone = all_both.detach().requires_grad_(1 in places)
        blocks: list[Tensor] = []
        best: tuple[Tensor, ...] | None = None
        for start in range(0, len(both), rows):
            some = slice(start, start + rows)
            own = both[some].detach().requires_grad_(0 in places)
            with torch.set_grad_enabled(bool(places)):
                block = objective.sums(own, keys[some], everyone, all_keys, first + start)
            if places:
                leaves = (own, everyone, *parameters)
                gradients = torch.autograd.grad(block[0], [leaves[place] for place in places])
                for place, gradient in zip(places, gradients, strict=True):
                    whole = required(totals[place])
                    (whole[some] if place == 0 else whole).add_(gradient)
            *sums, scores, nearest = block
            blocks.append(torch.stack(sums).detach())
            if best is not None:
                earlier = best[0] >= scores
                scores, nearest = (torch.where(earlier, *pair) for pair in zip(best, (scores, nearest), strict=True))
            best = scores, nearest
        assert best is not None  # of one block at least
        ctx.save_for_backward(*totals)
        total, *counted = torch.stack(blocks).sum(dim=0).unbind()
        ctx.mark_non_differentiable(*counted, *best)
        return total, *counted, *best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        return (None,) * 5 + tuple(
            None if saved_tensor is None else gradient * saved_tensor for saved_tensor in ctx.saved_tensors
        )


def at_own(own: Tensor, rows: int) -> Tensor:
    """(R, B) booleans, True where a row meets itself among `rows`.

    By comparison: to write a number at indices has it copied to the GPU, which waits.
    """
    return own[:, None] == torch.arange(rows, device=own.device)


def hits(chosen: Tensor, keys: Tensor, all_keys: Tensor) -> Tensor:
    """How many rows have chosen a right answer, their own or one that is right by chance.

    Args:
        chosen: (R,) where the answers stand among all rows.
        keys: (R, 2) keys of text and picture of the rows that choose.
        all_keys: (B, 2) of all rows.
    """
    return (all_keys[chosen] == keys).any(dim=1).sum().float()


def equal_keys(keys: Tensor, all_keys: Tensor, own: Tensor) -> Sequence[Tensor]:
    """Which pairs of different rows have equal texts, and which equal pictures.

    Args:
        keys: (R, 2) keys of text and picture of this process's rows.
        all_keys: (B, 2), of all processes'.
        own: (R,) where this process's rows stand among all.

    Returns:
        Two of (R, B), False where a row meets itself.
    """
    other = ~at_own(own, len(all_keys))
    return [(keys[:, None, column] == all_keys[None, :, column]) & other for column in (0, 1)]
