"""Shares of what is hidden that change over a training, linearly from a first to a last one.

Hiding more at first and less later teaches more in as many steps than one share does (Ankner et al. 2024,
arXiv:2305.15096, from 0.3 to 0.15).
"""

from lit_pretrain.errors import UserError

# One share for the whole training, or the first and the last one.
Rate = float | list[float]


def check_rate(setting: str, rate: Rate) -> None:
    """Refuse what hides nothing or everything.

    Raises:
        UserError: In one sentence.
    """
    rates = rate if isinstance(rate, list) else [rate, rate]
    if len(rates) != 2:
        raise UserError(f"{setting} is {rate}: give one share, or two, the first and the last of the training.")
    if not all(0.0 < one < 1.0 for one in rates):
        raise UserError(f"{setting} is {rate}: give a share between 0 and 1.")


def rate_at(rate: Rate, training_share: float) -> float:
    """The share that is hidden when so much of the training is over, from 0 to 1."""
    if not isinstance(rate, list):
        return rate
    first, last = rate
    return first + (last - first) * training_share
