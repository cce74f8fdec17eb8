"""AdamW that keeps its two moments of large matrices in bfloat16 (`optimizer.moments: bfloat16`).

A moment in float32 is as large as the parameters, and AdamW has two. bfloat16 has eight binary digits: a mean of
squares that changes by a thousandth a step (`beta2` 0.999) would always be rounded back to what it was. So the last
digit is rounded up or down by chance, such that its mean is the exact number (stochastic rounding; Croci et al. 2022,
doi:10.1098/rsos.211631, and the optimisers of torchao). The step itself is torch's fused AdamW in float32, piece by
piece of a matrix.

Chances are drawn by the step and the parameter alone: all processes round alike, and so does a resumed training.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.adamw import adamw

from lit_pretrain.errors import UserError
from lit_pretrain.modules.clipping import without_gradients

# Elements of a parameter from which on its moments are kept so: smaller ones are not worth a piece of their own.
LEAST_ELEMENTS = 2**16
# Elements of a piece, whose moments are in float32 for a moment.
PIECE = 2**20
MOMENTS = ("exp_avg", "exp_avg_sq")


def is_large(parameter: nn.Parameter) -> bool:
    """Whether a parameter's moments are worth to be kept in bfloat16."""
    return parameter.numel() >= LEAST_ELEMENTS and parameter.is_contiguous()


def check_strategy(strategy: Strategy) -> None:
    """Refuse what cuts a parameter.

    Raises:
        UserError: If the strategy shards parameters.
    """
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise UserError(
            "optimizer.moments bfloat16 is for whole parameters, which trainer.strategy "
            f"{type(strategy).__name__} cuts into shards, and their moments with them: take ddp, or leave "
            "optimizer.moments out."
        )


class Bfloat16MomentsAdamW(AdamW):
    """AdamW whose groups with `bfloat16_moments` have moments of that type; see this file's head."""

    def _rounded(self) -> Iterator[tuple[int, nn.Parameter, dict[str, Any]]]:
        """Parameters of these groups with their group; the number is a parameter's among all."""
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if group.get("bfloat16_moments"):
                    yield number, parameter, group
                number += 1

    def step(self, closure: Any = None) -> Any:
        """As AdamW's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rounded = list(self._rounded())
        for number, parameter, group in rounded:
            if parameter.grad is not None:
                self._update_pieces(number, parameter, group)
        with without_gradients(parameter for _, parameter, _ in rounded):
            super().step()
        return loss

    @torch.no_grad()
    def _update_pieces(self, number: int, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in MOMENTS:
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        generator = torch.Generator(parameter.device).manual_seed(int(state["step"]) * 2**16 + number)
        gradient = cast(Tensor, parameter.grad).contiguous().view(-1)
        weights, *moments = (one.view(-1) for one in (parameter.data, *(state[name] for name in MOMENTS)))
        for start in range(0, len(weights), PIECE):
            piece = slice(start, start + PIECE)
            # `float` is the piece itself where it is in float32 already.
            weight, slope, mean, square = (one[piece].float() for one in (weights, gradient, *moments))
            adamw(
                [weight],
                [slope],
                [mean],
                [square],
                [],
                [state["step"].to(parameter.device, copy=True)],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            if weights.dtype != torch.float32:
                weights[piece] = weight
            for moment, rounded in zip(moments, rounded_by_chance(mean, square, generator), strict=True):
                moment[piece] = rounded
        state["step"] += 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As AdamW's, which brings moments to the type of their parameter; these go back to bfloat16 without a loss."""
        super().load_state_dict(state_dict)
        for _, parameter, _ in self._rounded():
            state = self.state[parameter]
            for name in MOMENTS:
                if name in state:
                    state[name] = state[name].bfloat16()
            if "step" in state:
                # Seeds are made from it.
                state["step"] = state["step"].cpu()


def rounded_by_chance(first: Tensor, second: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two tensors of one length in float32, each element rounded to one of its two neighbours in bfloat16.

    A number between two neighbours becomes the nearer one with as large a probability as it is nearer, so that the mean
    is the number itself.

    Args:
        first: (N,), in float32; overwritten.
        second: As `first`.
        generator: Of the tensors' device.

    Returns:
        Two tensors (N,) in bfloat16.
    """
    count = len(first)
    # Thirty-two bits an element: a CPU draws sixty-four in the time of them. The tensors have sixteen of them each.
    draws = torch.empty(-(-count // 2), dtype=torch.int64, device=first.device)
    bits = draws.random_(-(2**63), None, generator=generator).view(torch.int32)[:count]
    # bfloat16 is the upper half of a float32; where a draw is large enough the lower half carries over into it.
    for values, draw in ((first, bits & 0xFFFF), (second, bits.bitwise_right_shift_(16).bitwise_and_(0xFFFF))):
        values.view(torch.int32).add_(draw).bitwise_and_(-(2**16))
    return first.bfloat16(), second.bfloat16()
