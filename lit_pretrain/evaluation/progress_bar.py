"""A bar on stderr for what takes long, of batches, pictures or texts; nothing where no person looks (no terminal)."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def with_bar(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Hand on items while a bar tells how many are done, with the time that is left.

    Args:
        items: Any.
        total: How many.
        description: What they are.
    """
    from rich.console import Console
    from rich.progress import track

    # It is gone at the end: the tables that follow are what stays.
    yield from track(items, description, total, console=Console(stderr=True), transient=True)
