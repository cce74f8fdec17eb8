"""What a person can get wrong, said in one sentence.

A `UserError` carries a sentence that names what is wrong, where, and what to do. The command line prints it as one
line on stderr and exits with status 2; in Python it is an ordinary exception.
"""

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
