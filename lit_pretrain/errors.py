"""What a person can get wrong, said in one sentence.

A `UserError` carries a sentence that names what is wrong, where, and what to do. The command line prints it as one
line on stderr and exits with status 2; in Python it is an ordinary exception.
"""

import math
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class UserError(Exception):
    """The person's input is wrong; the message says what, where, and what to do, in one sentence."""

    # jsonargparse keeps only the text of what a constructor raises; by this the command line finds the error again.
    latest: ClassVar["UserError | None"] = None

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        UserError.latest = self


def nearest(word: str, options: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the option nearest to `word`, or an empty string when none is near."""
    matches = get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def counted(number: int, noun: str) -> str:
    """A number with its noun, which has an s unless it is one."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def check_number(
    setting: str,
    value: float | None,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse a number outside of its range; None, a setting that is left out, passes, and NaN and infinity never do.

    Args:
        setting: As a config names it.
        value: Given for it.
        least: Smallest number that is in the range.
        above: What a number must be larger than.
        most: Largest number that is in the range.
        below: What a number must be smaller than.

    Raises:
        UserError: In one sentence.
    """
    if value is None:
        return
    low = value >= least if least is not None else above is None or value > above
    high = value <= most if most is not None else below is None or value < below
    if low and high and math.isfinite(value):
        return
    if least is not None and most is None and below is None:
        raise UserError(f"{setting} is {value}: give at least {least:g}.")
    words = {"from": least, "above": above, "to": most, "to below": below}
    limits = "".join(f" {word} {limit:g}" for word, limit in words.items() if limit is not None)
    raise UserError(f"{setting} is {value}: give a number{limits}.")


def check_length(setting: str, value: float | None, *, above_zero: bool = False) -> None:
    """Refuse what is neither a number of something nor a share of it; see `is_share`.

    Args:
        setting: As a config names it.
        value: Given for it; None, a setting that is left out, passes.
        above_zero: Whether 0 has no meaning.

    Raises:
        UserError: In one sentence.
    """
    if value is None:
        return
    low = value > 0 if above_zero else value >= 0
    if not low or not math.isfinite(value) or (value > 1 and value != int(value)):
        raise UserError(
            f"{setting} is {value}: give a whole number from {int(above_zero)}, or a share "
            f"{'above 0' if above_zero else 'from 0.0'} to 1.0, which is all."
        )


def is_share(value: float) -> bool:
    """Whether a setting that may be a number or a share is a share: 1 is one of something and 1.0 all of it.

    The rule of Lightning's limits and of scikit-learn's sizes.
    """
    return isinstance(value, float) and value <= 1.0


# User names and passwords of addresses. A password of a database may hold a slash, where an address of the web has its
# path; and whatever is called a secret in a query.
CREDENTIALS = (
    (re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/'\"<>]*@", re.IGNORECASE), r"\1"),
    (re.compile(r"\b((?!https?:)[a-z][a-z0-9+.-]*://)[^\s:/@'\"<>]*:[^\s@'\"<>]*@", re.IGNORECASE), r"\1"),
    (
        re.compile(
            r"([?&;][\w.-]*(?:password|passwd|pwd|token|secret|signature|credential|access_?key)[\w.-]*=)[^\s&;'\"<>]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)


def without_credentials(text: str) -> str:
    """Return a text without the user names, passwords and secrets of the addresses in it, to be shown and stored."""
    for pattern, replacement in CREDENTIALS:
        text = pattern.sub(replacement, text)
    return text
