"""What a person should know of the data while it is prepared: a line each on stderr, from one process only."""

import sys
from functools import cache


def is_first_process() -> bool:
    """Whether this is the process that speaks for all."""
    from lightning.pytorch.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", None) == 0


def say(line: str) -> None:
    """Tell a person, once however many processes there are."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)


@cache
def say_once(line: str) -> None:
    """As `say`, but not again: a source is opened wherever its rows are needed."""
    say(line)
